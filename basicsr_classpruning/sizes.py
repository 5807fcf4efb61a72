"""What images a restoration network takes and gives, and in what order it uses its layers: found by running it."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basicsr_classpruning.devices import on_one_thread
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity.apply import LayerUse, can_be_first, is_layer

_MULTIPLES = (1, 2, 4, 7, 8, 12, 14, 16, 24, 32, 64)  # sides tried, among them the windows of common transformers
_SQUARE_MULTIPLES = (48, 96, 128)  # of networks that take squares only, besides
_LEAST_SIDES = (8, 16, 32)  # sides from which on a multiple is tried: small images first, they cost least
_SAFE_SIDE = 32  # above every supported network's minimum
_CALIBRATION_SIDE = 64  # of the images on which weights are calibrated
_LOOPING_REFERENCE = 16  # side of the reference images of networks that loop over pixels: counting takes long there
_LAYER_OPERATORS = ('conv', 'mm', 'linear')
# Of processor time, which another program that runs at the same time does not make longer.
_MOST_SECONDS = 60.0  # for small images, all together
_MOST_CALIBRATION_SECONDS = 600.0  # for one image of that side, judged by a small one: the first run is often slow
_MOST_BYTES = 4 * 2**30  # of tensors that one image may need at a time


@dataclass(frozen=True)
class SizeRequirements:
    """SizeRequirements of a network's inputs and outputs."""

    scale: int
    """Output side over input side, at least 1."""
    multiple: int
    """Inputs' sides must be multiples of this; 1 where any size goes."""
    minimum: int = 1
    """Least side of inputs, in pixels; a network that mirrors its input at the border needs something to mirror."""
    reference: int = 64
    """Side of the images on which MACs are counted, before padding; less where a network loops over pixels."""

    square: bool = False
    """Whether inputs must be as high as they are wide."""

    def padded(self, side: int) -> int:
        """The next side that the network takes."""
        return -(-max(side, self.minimum) // self.multiple) * self.multiple

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The next height and width that the network takes together."""
        if self.square:
            height = width = max(height, width)
        return self.padded(height), self.padded(width)


@dataclass(frozen=True)
class Inputs:
    """What a run of a network showed."""

    channels: int
    """Channels of the images that it takes."""
    sizes: SizeRequirements
    use: LayerUse
    """How it uses its layers."""
    output: int | str | None = None
    """Which of the images that it returns is the restored one: place in a list, or key; None where it returns one."""
    images: int = 1
    """How many things it returns."""


@torch.no_grad()
def probe(net: nn.Module, channels: Sequence[int]) -> Inputs:
    """Runs a copy of a network in eval mode on small images, from small to large, until one is accepted.

    Sides are odd multiples of small numbers, so that what is accepted says what sides must be multiples of.

    Args:
        net: takes images ``(B, C, H, W)``. It is not changed.
        channels: numbers of channels to try at each size, the most probable first.

    Returns:
        What a run showed. Of several images in a list, tuple or dictionary the restored one is that of the input's
        channels, if any is; of these the largest; of these the one that most layers lie before, as stages refine what
        earlier ones give; of these the last.

    Raises:
        UserError: it cannot be copied, or returns no image; no image is accepted (with the network's own complaint,
            and the layer that had it); or it takes too long, or too much memory, on small images.
    """
    with torch.random.fork_rng(devices=[]), on_one_thread():
        run = _Run(_copied(net).eval())
        complaint = ''
        for multiple, height, width in _sides():
            for count in channels:
                try:
                    scale = run.scale(count, height, width)
                except ValueError as error:
                    complaint = complaint or str(error)
                    continue
                run.check_calibration(height * width)
                use, output, images = run.use, run.output, run.images
                square = height == width
                if square:
                    _refuse_fixed(run, count, multiple, height)
                reference = _LOOPING_REFERENCE if _loops(run, count, height, width) else SizeRequirements.reference
                minimum = _least_side(run, count, multiple)
                sizes = SizeRequirements(scale, multiple, minimum, reference, square)
                return Inputs(count, sizes, use, output, images)
    raise UserError(f'{type(net).__name__} restores no image of any size tried: {complaint}')


@torch.no_grad()
def bytes_of_image(net: nn.Module, channels: int, side: int) -> int:
    """Most memory that the tensors of one forward pass take at a time, for one square image; weights not counted."""
    run = _Run(_copied(net).eval())
    run.scale(channels, side, side)
    return run.peak


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except RuntimeError as error:  # what torch says of tensors that are the result of a computation
        raise UserError(
            f'{type(net).__name__} holds values that it computed, as under weight normalisation: they have to be made '
            f'parameters first ({str(error).splitlines()[0]})'
        ) from None


def _sides() -> Iterator[tuple[int, int, int]]:
    """Multiples with the heights and widths on which they are tried."""
    for multiple in _MULTIPLES:
        tried = None
        for least in _LEAST_SIDES:
            times = -(-least // multiple) | 1  # odd, so that no other factor of two hides in the side
            if times != tried:
                yield multiple, multiple * times, multiple * (times + 2)
            tried = times
    for multiple in (*_MULTIPLES, *_SQUARE_MULTIPLES):
        for times in sorted({-(-least // multiple) | 1 for least in _LEAST_SIDES}):
            yield multiple, multiple * times, multiple * times


def _refuse_fixed(run: _Run, channels: int, multiple: int, side: int) -> None:
    """Raises UserError where a network that took a square takes no larger one."""
    try:
        run.scale(channels, side + 2 * multiple, side + 2 * multiple)
    except ValueError as error:
        raise UserError(
            f'{run.name} takes images of {side}×{side} pixels only, as its options say; networks that take other sizes '
            f'too can be pruned ({error})'
        ) from None


def _loops(run: _Run, channels: int, height: int, width: int) -> bool:
    """Whether the network that ran on an image calls more operators on a larger one, for its pixels."""
    operators = run.operators
    try:
        run.scale(channels, 2 * height, width)
    except ValueError:
        return False
    return run.operators - operators > height * width


def _least_side(run: _Run, channels: int, multiple: int) -> int:
    side = multiple
    while side < _SAFE_SIDE:
        try:
            run.scale(channels, side, side)
        except ValueError:
            side *= 2
        else:
            break
    return side


class _Run:
    """Runs a network on images of zeros, watched: what it uses, how long it takes, how much memory."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        parameter = next(net.parameters(), None)
        self._device = None if parameter is None else parameter.device
        self._deadline = time.process_time() + _MOST_SECONDS
        self._watched = _WatchedLayers(net)
        self._seconds = 0.0
        self._limits = _Limits(self._deadline)
        self.output: int | str | None = None
        """Which of the images that the last run returned is the restored one."""
        self.images = 1
        """How many things the last run returned."""

    @property
    def name(self) -> str:
        """Of the network's class."""
        return type(self._net).__name__

    @property
    def use(self) -> LayerUse:
        """What the last run showed."""
        return self._watched.use

    @property
    def peak(self) -> int:
        """Most bytes alive at a time in the last run."""
        return self._limits.peak

    @property
    def operators(self) -> int:
        """Operators called in the last run."""
        return self._limits.operators

    def scale(self, channels: int, height: int, width: int) -> int:
        """Output side over input side; raises ValueError where the network does not take the image."""
        # Repeated, because what a factory makes counts as the network's own (untrusted.bounds); these are many.
        image = torch.zeros(1, device=self._device).repeat(1, channels, height, width)
        start = time.process_time()
        self._limits = _Limits(self._deadline)
        try:
            with self._watched, self._limits:
                output = self._net(image)
        except UserError:
            raise
        except _TooMuch as error:
            raise UserError(f'{type(self._net).__name__}: an image of {height}×{width} pixels {error}') from None
        except Exception as error:  # a network may stumble over a size in any way
            reason = (str(error) or type(error).__name__).splitlines()[0]
            where = self._watched.running
            raise ValueError(f'{where}: {reason}' if where else reason) from None
        self._seconds = time.process_time() - start
        return self._choose(output, image)

    def _choose(self, returned: Any, image: Tensor) -> int:
        """Output side over input side of the restored image, which becomes ``output``."""
        if isinstance(returned, Tensor):
            self.output, self.images = None, 1
            return _scale_of(returned, image)
        items: list[tuple[int | str, Any]] = []
        if isinstance(returned, (list, tuple)):
            items = [(place if place < len(returned) - 1 else -1, value) for place, value in enumerate(returned)]
        elif isinstance(returned, Mapping):
            items = list(returned.items())
        found, complaint = [], ''
        for place, (key, value) in enumerate(items):
            if isinstance(value, Tensor):
                try:
                    scale = _scale_of(value, image)
                except ValueError as error:
                    complaint = str(error)
                else:
                    alike = value.shape[1] == image.shape[1]
                    found.append((alike, scale, self._limits.depth(value), place, key))
        if found:
            (*_, scale, _, _, self.output), self.images = max(found, key=lambda each: each[:4]), len(items)
            return scale
        if complaint:
            raise ValueError(complaint)
        raise UserError(f'{self.name} returns a {type(returned).__name__}, and in it no image (B, C, H, W)')

    def check_calibration(self, pixels: int) -> None:
        """Raises UserError where an image as for calibration, judged by the last run, would be too much."""
        times = _CALIBRATION_SIDE**2 / pixels
        seconds, size = times * self._seconds, times * self.peak
        if seconds > _MOST_CALIBRATION_SECONDS or size > _MOST_BYTES:
            raise UserError(
                f'{type(self._net).__name__} is too large to be pruned here: an image of '
                f'{_CALIBRATION_SIDE}×{_CALIBRATION_SIDE} pixels would take about {seconds:.0f} s and '
                f'{size / 2**30:.1f} GB; at most {_MOST_CALIBRATION_SECONDS:.0f} s and {_MOST_BYTES / 2**30:.0f} GB '
                'are allowed'
            )


def _scale_of(output: Tensor, image: Tensor) -> int:
    """Output side over input side; raises ValueError where it is no image of the same shape."""
    height, width = image.shape[-2:]
    if output.ndim != 4:
        raise ValueError(f'{height}×{width} in gives {tuple(output.shape)} out')
    scale = output.shape[-2] // height
    if scale < 1 or output.shape[-2:] != (height * scale, width * scale):
        raise ValueError(f'{height}×{width} in gives {tuple(output.shape[-2:])} out')
    return scale


class _TooMuch(Exception):
    """A run takes too long, or too much memory."""


class _Limits(TorchDispatchMode):
    """While it is active, operators are stopped at a deadline, or when the tensors alive take too much memory."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.peak = 0
        """Most bytes alive at a time, of tensors made by operators."""
        self.operators = 0
        """How many were called."""
        self._alive = 0
        self._tensors: dict[int, int] = {}  # tensors alive by the address of their memory
        self._depths: dict[int, int] = {}  # convolutions and products one behind the other that made what is there
        self._deadline = deadline

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        depth = max((self.depth(value) for value in tree_leaves((args, kwargs))), default=0)
        depth += any(word in str(func) for word in _LAYER_OPERATORS)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
                if value.layout is torch.strided:
                    self._depths[value.untyped_storage().data_ptr()] = depth
        if self._alive > _MOST_BYTES:
            raise _TooMuch(f'takes more than {_MOST_BYTES / 2**30:.0f} GB')
        if time.process_time() > self._deadline:
            raise _TooMuch(f'takes more than {_MOST_SECONDS:.0f} s')
        return result

    def depth(self, value: Any) -> int:
        """How many convolutions and products lie one behind the other before a tensor."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return 0
        return self._depths.get(value.untyped_storage().data_ptr(), 0)

    def _count(self, value: Tensor) -> None:
        if value.layout is not torch.strided:
            return
        storage = value.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self._tensors:
            self._tensors[address] = 0
            self._alive += size
            self.peak = max(self.peak, self._alive)
        self._tensors[address] += 1
        weakref.finalize(value, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._tensors[address] -= 1
        if not self._tensors[address]:
            del self._tensors[address]
            self._alive -= size


class _WatchedLayers(TorchFunctionMode):
    """Sees which layers of a network run, and whose weights other code than the layer's reads. For one run at a time.

    Args:
        net: a copy of the network; hooks are put into its layers.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._first = ''
        self._read: set[str] = set()
        self._stack: list[str] = []
        self._owners: dict[int, str] = {}
        for name, module in net.named_modules():
            if is_layer(module):
                self._owners[id(module.weight)] = name
                module.register_forward_pre_hook(lambda module, _, name=name: self._enter(name, module))
                module.register_forward_hook(lambda *_: self._leave())

    @property
    def use(self) -> LayerUse:
        """What the last run showed."""
        return LayerUse(self._first, frozenset(self._read))

    @property
    def running(self) -> str:
        """Name of the layer in which the last run stopped; empty where it was in none."""
        return self._stack[-1] if self._stack else ''

    def __enter__(self) -> _WatchedLayers:
        self._first, self._read, self._stack = '', set(), []
        super().__enter__()
        return self

    def _enter(self, name: str, module: nn.Module) -> None:
        self._stack.append(name)
        if not self._first and can_be_first(module):
            self._first = name

    def _leave(self) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        owners = {self._owners[id(value)] for value in tree_leaves((args, kwargs)) if id(value) in self._owners}
        owners.discard(self.running)
        if owners and any(isinstance(value, Tensor) for value in tree_leaves(result)):  # else a shape or device
            self._read |= owners
        return result


def run_padded(run: Callable[[Tensor], Tensor], x: Tensor, sizes: SizeRequirements) -> Tensor:
    """Runs a network on images of any size ``(B, C, H, W)``: pads at the right and bottom, and crops the output."""
    height, width = x.shape[-2:]
    wanted = sizes.padded_size(height, width)
    below, right = wanted[0] - height, wanted[1] - width
    if not below and not right:
        return run(x)
    mirrored = below < height and right < width
    padded = functional.pad(x, (0, right, 0, below), mode='reflect' if mirrored else 'replicate')
    return run(padded)[..., : height * sizes.scale, : width * sizes.scale]
