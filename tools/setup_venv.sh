#!/usr/bin/env bash
# Makes the virtual environment that `make` uses: tools/setup_venv.sh [FOLDER] [EXTRA,EXTRA…]
# Torch goes first and is pinned: BasicSR's own build, and a resolver left to itself, would fetch another one.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-test,lint,docs,package,engines}

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.10 python3; do
    if command -v "$candidate" >/dev/null; then python=$candidate; break; fi
  done
fi
[ -n "$python" ] || { echo 'setup: no Python found; Python 3.10, 3.11 or 3.12 is needed' >&2; exit 1; }
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' || {
  echo "setup: $("$python" --version) is not supported; BasicSR needs Python 3.10, 3.11 or 3.12 (set PYTHON=…)" >&2
  exit 1
}
if [ ! -x "$venv/bin/pip" ]; then
  rm -rf "$venv"
  "$python" -m venv "$venv" || {
    echo "setup: $python has no venv module; on Debian: apt-get install python3-venv" >&2
    exit 1
  }
fi
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"

# BasicSR 1.4.2 builds with the packages that are installed, and with setuptools before 81.
$pip install -c constraints.txt torch 'setuptools<81' wheel cython 'numpy>=1.24'
$pip install -c constraints.txt torchvision
$pip install -c constraints.txt --no-build-isolation basicsr
$pip install -c constraints.txt --no-build-isolation -e ".[$extras]"

# opencv-python needs the libraries of a desktop; a server without them gets the same OpenCV without windows.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
  version=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("opencv-python"))')
  echo "setup: no desktop libraries here, taking opencv-python-headless $version"
  $pip uninstall -y opencv-python
  # Both have the same files: an earlier set-up's headless one lost them just now, and counts as installed.
  $pip install --force-reinstall --no-deps "opencv-python-headless==$version"
fi
"$venv/bin/python" -c 'import basicsr_classpruning' || { echo 'setup: the package cannot be imported' >&2; exit 1; }
touch "$venv/.installed"
