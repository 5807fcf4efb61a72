"""Makes BasicSR 1.4.2 importable, and usable without a GPU, on today's Python, torch and torchvision.

Imported before anything else of the package. Each patch is applied only where it is needed, so that a user with a
matching set of libraries sees none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import types

from basicsr_classpruning.errors import UserError

MAX_PIXELS = 200_000_000  # of a picture, unless the user allows more
_LIMIT = 'OPENCV_IO_MAX_IMAGE_PIXELS'
_PYTHONS = ((3, 10), (3, 13))  # from, up to but not including

# What torchvision declares in Python although its compiled library, built for another torch, could not be loaded.
_TORCHVISION_SCHEMAS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}
_libraries: list = []  # torch.library definitions live as long as these objects


def picture_limit() -> int:
    """The most pixels that a picture may have, unless a command allows more: `MAX_PIXELS`, or what the environment
    variable that OpenCV reads, too, says."""
    try:
        return int(os.environ[_LIMIT])
    except (KeyError, ValueError):
        return MAX_PIXELS


def check_python(version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raises UserError where BasicSR 1.4.2 cannot be installed: Python below 3.10 or from 3.13 on."""
    if not _PYTHONS[0] <= tuple(version[:2]) < _PYTHONS[1]:
        found = '.'.join(map(str, version[:2]))
        raise UserError(f'Python {found} is not supported: BasicSR 1.4.2 needs Python 3.10, 3.11 or 3.12')


def patch_torchvision_operators() -> None:
    """Imports torchvision, declaring the operators that a torchvision built for another torch lacks.

    A torchvision built for CUDA next to a CPU build of torch cannot load its compiled operators, and its import then
    fails with "operator torchvision::nms does not exist". BasicSR uses none of them: a declaration is enough.
    """
    for _ in range(len(_TORCHVISION_SCHEMAS) + 1):
        try:
            importlib.import_module('torchvision')
            return
        except RuntimeError as error:
            missing = re.search(r'operator torchvision::(\w+) does not exist', str(error))
            if missing is None or missing[1] not in _TORCHVISION_SCHEMAS:
                raise
            for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
                del sys.modules[name]
            from torch.library import Library

            library = Library('torchvision', 'FRAGMENT')
            library.define(_TORCHVISION_SCHEMAS[missing[1]])
            _libraries.append(library)
    raise UserError('torchvision does not fit the installed torch: install the pair that belongs together')


def patch_functional_tensor() -> None:
    """Provides ``torchvision.transforms.functional_tensor``, gone since torchvision 0.17, which BasicSR imports."""
    name = 'torchvision.transforms.functional_tensor'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]  # the only name BasicSR takes from it
    sys.modules[name] = module


def patch_process_group() -> None:
    """Lets ``--launcher pytorch`` work without GPUs, over gloo: BasicSR divides by the number of GPUs."""
    import torch
    from basicsr.utils import dist_util

    original = dist_util._init_dist_pytorch
    if original.__module__ == __name__:
        return

    def init_dist_pytorch(backend: str, **kwargs) -> None:
        if torch.cuda.device_count() > 0:
            original(backend, **kwargs)
        else:
            torch.distributed.init_process_group(backend='gloo', **kwargs)

    dist_util._init_dist_pytorch = init_dist_pytorch


def patch_yaml() -> None:
    """Makes BasicSR read options with a loader that builds plain values only, and never evaluates a string."""
    import yaml
    from basicsr.utils import options

    options.ordered_yaml = lambda: (yaml.SafeLoader, yaml.SafeDumper)
    options._postprocess_yml_value = lambda value: None if value in ('~', 'none', 'None') else yaml.safe_load(value)


def prepare() -> None:
    """Applies every patch that this machine needs. Called once, when the package is imported."""
    check_python()
    # OpenCV's warnings have no place between a user's lines.
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    # Training pictures of more are refused before memory is asked for; OpenCV's own limit is five times as much.
    os.environ.setdefault(_LIMIT, str(MAX_PIXELS))
    patch_torchvision_operators()
    patch_functional_tensor()
    patch_process_group()
    patch_yaml()
