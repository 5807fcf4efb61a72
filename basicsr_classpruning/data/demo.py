"""A small data set of photographs that come with scikit-image, for the demo and for tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage

from basicsr_classpruning.data.bicubic import bicubic_shrink
from basicsr_classpruning.data.degradations import as_float, as_uint8
from basicsr_classpruning.errors import UserError

# All lie inside scikit-image's wheel. Portrait, still life, street, sky and textures on either side.
TRAIN_PHOTOGRAPHS = (
    'astronaut.png',
    'coffee.png',
    'motorcycle_left.png',
    'hubble_deep_field.jpg',
    'brick.png',
    'grass.png',
)
TEST_PHOTOGRAPHS = ('chelsea.png', 'rocket.jpg', 'gravel.png')
# Print, coins, cells, tissue, a retina, the Moon: nothing like the photographs that networks are usually trained on.
OTHER_PICTURES = ('page.png', 'text.png', 'coins.png', 'cell.png', 'ihc.png', 'retina.jpg', 'moon.png')


@dataclass(frozen=True)
class DemoData:
    """Folders of PNG files; no photograph is in both."""

    train: Path
    test: Path


def _photograph(name: str) -> np.ndarray:
    """One of scikit-image's photographs, (H, W, 3) uint8 BGR; those stored as JPEG are halved to hide its artefacts."""
    path = Path(skimage.__file__).parent / 'data' / name
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if picture is None:
        raise UserError(f'the installed scikit-image lacks its photograph {path}: install scikit-image again')
    return as_uint8(bicubic_shrink(as_float(picture), 2)) if path.suffix == '.jpg' else picture


def _write(names: tuple[str, ...], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = (folder / name).with_suffix('.png')
        if not target.exists():
            unfinished = target.with_suffix(f'.{os.getpid()}.part')
            unfinished.write_bytes(cv2.imencode('.png', _photograph(name))[1].tobytes())
            unfinished.replace(target)
    return folder


def make_demo_data(root: str | Path) -> DemoData:
    """Writes ``root/train`` and ``root/test``, 6 and 3 colour PNG, the same every time; files already there are kept.

    Raises UserError where scikit-image lacks a photograph.
    """
    return DemoData(_write(TRAIN_PHOTOGRAPHS, Path(root) / 'train'), _write(TEST_PHOTOGRAPHS, Path(root) / 'test'))


def make_other_pictures(folder: str | Path) -> Path:
    """Writes seven colour PNG that are no photographs of everyday things, for tests of networks trained on those.

    Raises UserError where scikit-image lacks a picture.
    """
    return _write(OTHER_PICTURES, Path(folder))
