"""Pairs of clean and degraded pictures, of which only the clean ones are stored."""

from __future__ import annotations

import logging
import random
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset, get_worker_info

from basicsr_classpruning.data.degradations import BicubicDownscaling, Degradation, as_float, as_uint8, picture_rng
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.data.region import Region
from basicsr_classpruning.errors import UsageError

# Decoding takes longer than all else that is done for a crop: pictures are kept up to so many bytes, shared evenly
# among the loader's workers. Beyond that, none is replaced: with random draws any choice is as good.
_KEPT_BYTES = 512 * 2**20


@DATASET_REGISTRY.register()
class DegradedImageDataset(Dataset):
    """Clean pictures, degraded on the fly with a range of strengths.

    In training each draw is a random crop with a random strength, taken from the global states of ``random`` and
    ``numpy.random``. In validation each picture is whole and is degraded the same way every time, on every machine.

    Args:
        opt (dict): options of the data set:
            name (str): used in messages.
            dataroot_gt (str): folder of clean pictures, or LMDB folder.
            io_backend (dict): ``{type: disk}`` (default) or ``{type: lmdb}``.
            degradation (dict): ``{type: noise, sigma: [0, 50]}``, ``{type: jpeg, quality: [10, 90]}`` or
                ``{type: bicubic}``, which shrinks by ``scale``.
            color (str): ``rgb`` (default), ``gray``, or ``y`` (luma as in BasicSR); converted before degrading.
            shrink (int): factor by which clean pictures are shrunk first. Default: 1. With 2 or more, pictures that
                are themselves JPEG lose most of their own artefacts.
            phase (str), scale (int): set by BasicSR from the options file.
            gt_size (int): side of the clean crops, a multiple of ``scale`` (training). Smaller pictures are mirrored
                at their borders up to this size.
            use_hflip (bool), use_rot (bool): random flips and rotations (training). Default: true.

    Raises:
        UsageError: A wrong option, or no pictures.
        PictureError: Pictures are damaged; they are named, before the first step.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self.scale: int = opt.get('scale', 1)
        self.shrink: int = opt.get('shrink', 1)
        self.training = opt['phase'] == 'train'
        try:
            if not isinstance(self.shrink, int) or self.shrink < 1:
                raise UsageError(f'shrink: {self.shrink!r} is not a whole number from 1 on')
            if not isinstance(opt.get('degradation'), dict):
                raise UsageError('degradation: missing; a block such as {type: noise, sigma: [0, 50]}')
            self.degradation = Degradation.from_options(opt['degradation'], self.scale)
            self.least_size = self._checked_gt_size() if self.training else self.scale
            if 'dataroot_gt' not in opt:
                raise UsageError('dataroot_gt: missing; the folder of clean pictures, or LMDB')
            backend = (opt.get('io_backend') or {}).get('type', 'disk')
            self.pictures = Pictures(opt['dataroot_gt'], backend, opt.get('color') or 'rgb')
        except UsageError as error:
            raise UsageError(f'data set {opt.get("name", "without name")}: {error}') from None
        if skipped := self.pictures.check():
            logging.getLogger('basicsr').info(f'{opt["dataroot_gt"]}: {skipped}')
        self.shrinking = BicubicDownscaling(self.shrink)
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0

    def _checked_gt_size(self) -> int:
        size = self.opt.get('gt_size')
        if not isinstance(size, int) or size < 1 or size % self.scale:
            raise UsageError(f'gt_size: {size!r} is not a whole multiple of scale {self.scale}')
        return size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns ``lq`` (C, H / scale, W / scale) and ``gt`` (C, H, W), float32 RGB (or one channel) in [0, 1], and
        their paths, as BasicSR's PairedImageDataset does. Noise may exceed [0, 1].

        Raises PictureError where the picture cannot be read or decoded.
        """
        if self.training:
            # Turned before it is degraded: a camera's JPEG blocks are not mirrored either.
            picture = self._turned(self._at_least(self.least_size * self.shrink, self._kept_picture(index)))
            part = self._random_part(self._clean_size(picture))
            rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint64))
        else:
            picture = self._at_least(self.least_size * self.shrink, self.pictures.read(index))
            part = Region(0, 0, *self._clean_size(picture))
            rng = picture_rng(self.pictures.names[index], index)
        clean, degraded = self._pair(picture, part, rng)
        path = self.pictures.paths[index]
        return {'lq': _tensor(degraded), 'gt': _tensor(clean), 'lq_path': path, 'gt_path': path}

    def _kept_picture(self, index: int) -> np.ndarray:
        """Picture ``index``, decoded once if there is room for it. Not to be written to."""
        if index in self._kept:
            return self._kept[index]
        picture = self.pictures.read(index)
        worker = get_worker_info()
        if self._kept_bytes + picture.nbytes <= _KEPT_BYTES // (worker.num_workers if worker else 1):
            self._kept[index] = picture
            self._kept_bytes += picture.nbytes
        return picture

    def _turned(self, picture: np.ndarray) -> np.ndarray:
        """A random flip and rotation, as a view; each as likely as in BasicSR's ``augment``."""
        if self.opt.get('use_hflip', True) and random.random() < 0.5:
            picture = picture[:, ::-1]
        if self.opt.get('use_rot', True):
            if random.random() < 0.5:
                picture = picture[::-1]
            if random.random() < 0.5:
                picture = picture.transpose(1, 0, 2)
        return picture

    def _clean_size(self, picture: np.ndarray) -> tuple[int, int]:
        """Height and width once shrunk and cropped to multiples of the scale."""
        height, width = (side // self.shrink // self.scale * self.scale for side in picture.shape[:2])
        return height, width

    def _random_part(self, size: tuple[int, int]) -> Region:
        gt_size = self.opt['gt_size']
        top, left = (random.randint(0, (side - gt_size) // self.scale) * self.scale for side in size)
        return Region(top, left, gt_size, gt_size)

    def _pair(self, picture: np.ndarray, part: Region, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The part as clean and degraded picture: what degrading the whole picture and then cropping would give."""
        context = self.degradation.context(part, self._clean_size(picture))
        clean = self._shrunk(picture, context)
        degraded = self.degradation.degrade(clean, rng)
        inner = part.inside(context)
        return inner.of(clean), inner.reduced(self.scale).of(degraded)

    def _shrunk(self, picture: np.ndarray, part: Region) -> np.ndarray:
        """The part of the shrunk picture, uint8."""
        if self.shrink == 1:
            return part.of(picture)
        wanted = part.enlarged(self.shrink)
        context = self.shrinking.context(wanted, picture.shape[:2])
        shrunk = self.shrinking.degrade(context.of(picture), np.random.default_rng(0))
        return as_uint8(wanted.inside(context).reduced(self.shrink).of(shrunk))

    @staticmethod
    def _at_least(size: int, picture: np.ndarray) -> np.ndarray:
        missing = [max(0, size - side) for side in picture.shape[:2]]
        if not any(missing):
            return picture
        larger = cv2.copyMakeBorder(picture, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
        return larger.reshape(*larger.shape[:2], picture.shape[2])


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(as_float(picture).transpose(2, 0, 1)))
