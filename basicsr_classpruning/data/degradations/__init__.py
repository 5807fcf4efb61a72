"""What happens to clean pictures: noise, JPEG compression, bicubic down-scaling; one file for each, found by scanning.

A new degradation is a class registered with ``register_degradation``, here or in a module of the user's: it says its
name and options in options files, its form on the command line, and, if it can, how to find out that a network was
trained to undo it. All else derives from that.
"""

import importlib
from pathlib import Path

for _path in sorted(Path(__file__).parent.glob('*.py')):
    if _path.stem != '__init__':
        importlib.import_module(f'{__name__}.{_path.stem}')

from basicsr_classpruning.data.degradations.base import (  # noqa: E402
    Degradation,
    Number,
    Range,
    as_float,
    as_uint8,
    picture_rng,
    register_degradation,
    registered_degradations,
    text_forms,
)
from basicsr_classpruning.data.degradations.bicubic_downscaling import BicubicDownscaling  # noqa: E402
from basicsr_classpruning.data.degradations.gaussian_noise import GaussianNoise  # noqa: E402
from basicsr_classpruning.data.degradations.jpeg_compression import JpegCompression  # noqa: E402

__all__ = [
    'BicubicDownscaling',
    'Degradation',
    'GaussianNoise',
    'JpegCompression',
    'Number',
    'Range',
    'as_float',
    'as_uint8',
    'picture_rng',
    'register_degradation',
    'registered_degradations',
    'text_forms',
]
