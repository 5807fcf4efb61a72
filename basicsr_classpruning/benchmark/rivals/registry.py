"""What a rival is, what it is given, and how it becomes known."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.data.pictures import Pictures
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.export.onnx import TOLERANCE, Graph, convert
from basicsr_classpruning.inference.engines import Engine
from basicsr_classpruning.pruning.crops import cut_crops
from basicsr_classpruning.routing.network import Subnetwork

_CALIBRATION_CROPS = 60


@dataclass(frozen=True)
class Conditions:
    """What all rivals are given."""

    network: Subnetwork
    """A dense one, on the CPU."""
    threads: int
    """That each may use. Those that compute in PyTorch obey ``torch.set_num_threads``, which the caller sets."""
    tile: int
    """Side of the inputs in pixels, as far as the network takes it."""
    calibration: Tensor | None = None
    """Inputs ``(N, C, h, w)`` like those to be restored, for rivals that round to whole numbers."""

    @property
    def graph(self) -> Graph:
        """The network in ONNX, converted once. Raises UserError where it cannot be."""
        if isinstance(self._converted, UserError):
            raise UserError(str(self._converted))
        return self._converted

    @cached_property
    def _converted(self) -> Graph | UserError:
        try:
            return convert(self.network.net, self.network.channels, self.network.sizes)
        except UserError as error:
            return error

    @cached_property
    def sample(self) -> Tensor:
        """One input ``(1, C, h, w)``: of the calibration's, else a smooth one."""
        if self.calibration is not None:
            return self.calibration[:1]
        sizes = self.network.sizes
        side = sizes.padded(max(self.tile // sizes.multiple, 1) * sizes.multiple)
        rough = torch.rand((1, self.network.channels, 9, 9), generator=torch.Generator().manual_seed(0))
        return functional.interpolate(rough, (side, side), mode='bicubic', align_corners=False).clamp(0, 1)


@dataclass(frozen=True)
class Rival:
    """An engine that users could run the dense network with instead, on a CPU."""

    name: str
    """In the rows of a benchmark: the program, and its precision where it has several."""
    packages: tuple[str, ...]
    """That must be importable; none of them is a requirement of this package."""
    lossless: bool
    """Whether it computes what PyTorch does in fp32, up to the order of sums."""
    make: Callable[[Conditions], Engine]
    """Raises UserError with the reason where it cannot run here, or cannot run this network."""

    def try_out(self, conditions: Conditions) -> Engine:
        """Makes the engine and runs it once: what restores something else is not worth timing.

        Raises UserError with the reason where it cannot be had.
        """
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if absent:
            raise UserError(f'{" and ".join(absent)} not installed: pip install basicsr-classpruning[engines]')
        try:
            engine = self.make(conditions)
            with torch.inference_mode():
                wanted, found = conditions.network.net(conditions.sample), engine(conditions.sample)
        except UserError:
            raise
        except Exception as error:  # each of these programs fails in ways of its own
            name, text = type(conditions.network.net).__name__, ' '.join(str(error).split())
            raise UserError(f'{name} cannot be run with it: {type(error).__name__}: {text[:200]}') from None
        self._check(found, wanted)
        return engine

    def _check(self, found: Tensor, wanted: Tensor) -> None:
        if found.shape != wanted.shape:
            raise UserError(f"its output is of shape {tuple(found.shape)}, the network's of {tuple(wanted.shape)}")
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
        if not off < (TOLERANCE if self.lossless else float('inf')):  # NaN is off too
            raise UserError(f'its output is off by {off:.1g}')


RIVALS: dict[str, Rival] = {}
"""By name, in the order of the tables."""


def register_rival(
    name: str, packages: tuple[str, ...] = (), lossless: bool = True
) -> Callable[[Callable[[Conditions], Engine]], Callable[[Conditions], Engine]]:
    """Makes a rival known; see `Rival` for the arguments and for what the function is to do."""

    def register(make: Callable[[Conditions], Engine]) -> Callable[[Conditions], Engine]:
        RIVALS[name] = Rival(name, packages, lossless, make)
        return make

    return register


def make_rivals(
    conditions: Conditions, progress: Callable[[int, int], object]
) -> tuple[dict[str, Engine], dict[str, str]]:
    """Makes all engines that can be had here.

    Args:
        conditions: the same for all.
        progress: is told how many were tried, and of how many.

    Returns:
        The engines by name, and for each name that is missing the reason.
    """
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for done, rival in enumerate(RIVALS.values(), 1):
        try:
            engines[rival.name] = rival.try_out(conditions)
        except UserError as error:
            missing[rival.name] = str(error)
        progress(done, len(RIVALS))
    return engines, missing


def calibration_inputs(folder: str, degradation: Degradation | None, network: Subnetwork, tile: int) -> Tensor:
    """Inputs ``(N, C, h, w)`` of a network, cut from a folder of pictures.

    Args:
        folder: clean pictures with a degradation, or inputs without.
        degradation: what makes inputs of clean pictures.
        network: that takes them.
        tile: greatest side of the inputs, in pixels.

    Raises UsageError where the folder or the degradation does not fit.
    """
    try:
        pictures = Pictures(folder, color='gray' if network.channels == 1 else 'rgb')
    except UsageError as error:
        raise UsageError(f'{folder}: {str(error).removeprefix("dataroot_gt: ")}', key='calibration') from None
    sizes = network.sizes
    crops = cut_crops(
        pictures, degradation, scale=sizes.scale, count=_CALIBRATION_CROPS, side=tile, seed=0, step=sizes.multiple
    )
    return crops.lq
