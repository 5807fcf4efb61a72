#!/usr/bin/env bash
# Builds sdist and wheel and uses the wheel as a reader would: tools/check_package.sh [VENV]
# The wheel goes into a fresh environment that sees VENV's packages (torch and BasicSR are not installed again), and is
# used from a folder that knows nothing of this repository. The sdist must build the same wheel, and hold the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
say() { echo "package: $*"; }

say 'building sdist, and the wheel from it'
"$venv/bin/python" -m build --no-isolation --outdir "$work/dist" . > "$work/build.log" 2>&1 || { tail -30 "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
"$venv/bin/python" - "$wheel" "$work"/dist/*.tar.gz <<'PYTHON'
import subprocess
import sys
import tarfile
import zipfile

packed = {'/'.join(name.split('/')[1:]) for name in tarfile.open(sys.argv[2]).getnames()}
listed = subprocess.run(['git', 'ls-files'], capture_output=True, text=True, check=False)
tracked = set(listed.stdout.split('\n')) - {'', '.gitignore'} if listed.returncode == 0 else set()
missing = sorted(tracked - packed)
assert not missing, f'the sdist lacks {missing}'
installed = set(zipfile.ZipFile(sys.argv[1]).namelist())
for name in ('kernels/libclasspruning_kernels.so', 'benchmark/page.html.jinja', 'benchmark/rivals/ncnn_rival.py', 'options/train/demo.yml'):
    assert f'basicsr_classpruning/{name}' in installed, f'the wheel lacks {name}'
assert not [name for name in installed if name.startswith(('tests/', 'tools/'))]
PYTHON

say "installing $(basename "$wheel") into a fresh environment"
"$venv/bin/python" -m venv --without-pip "$work/venv"
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/base.pth"
"$venv/bin/python" -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check \
  --no-deps --no-index --ignore-installed --prefix "$work/venv" "$wheel"
if ! "$venv/bin/python" -m pip --python "$work/venv/bin/python" check > "$work/check.log"; then
  # Without desktop libraries the headless OpenCV takes the other one's place.
  if grep classpruning "$work/check.log" | grep -v 'opencv-python, which is not installed'; then exit 1; fi
fi
export PATH="$work/venv/bin:$PATH" OMP_NUM_THREADS=1

mkdir "$work/elsewhere"
cd "$work/elsewhere"
say 'using it from another folder'
python - "$site" <<'PYTHON'
import sys

import basicsr_classpruning
from basicsr_classpruning import kernels
from basicsr_classpruning.data.demo import make_demo_data

assert basicsr_classpruning.__file__.startswith(sys.argv[1]), basicsr_classpruning.__file__
print('package:', kernels.describe())
assert 'compiled' in kernels.describe()
make_demo_data('datasets/demo')
PYTHON
classpruning --version
classpruning --help > help.txt
options=$(python -c 'from basicsr_classpruning.examples import options_folder; print(options_folder())')
tr -d ' \n' < help.txt | grep -qF "$(tr -d ' ' <<< "$options")"
cp -r "$options" .
short='train:total_iter=4 train:scheduler:periods=[4] val:val_freq=100 datasets:train:num_worker_per_gpu=0 num_gpu=0'
# shellcheck disable=SC2086
classpruning train -opt options/train/demo_dense.yml --force_yml $short > train.log 2>&1 || { tail -5 train.log; exit 1; }
dense=experiments/demo_dense/models/net_g_latest.pth
classpruning prune $dense --out pruned.pth --candidates 4:16 8:16 16:16
classpruning analyze --model pruned.pth --size 3x96x96 | tail -3
classpruning restore datasets/demo/test/chelsea.png --model pruned.pth --output restored --budget 0.6 --class-map
test -s restored/chelsea.png && test -s restored/chelsea_classes.png
mkdir one && cp datasets/demo/test/rocket.png one/
classpruning benchmark --models $dense pruned.pth --gt one --degrade noise25-25 --repeats 1 --report report.html
test -s report.html
say 'all is well'
