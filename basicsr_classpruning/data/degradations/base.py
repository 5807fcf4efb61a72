"""What a degradation is, how it is written as text and in options, and the registry of all of them."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from basicsr_classpruning.data.region import Region
from basicsr_classpruning.errors import UsageError

NUMBER = r'(\d+(?:\.\d+)?)'
"""A number of a text form, for ``Degradation.text``."""


def as_float(picture: np.ndarray) -> np.ndarray:
    """uint8 0–255 to float32 in [0, 1]; float32 is returned as it is."""
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture


def as_uint8(picture: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] to uint8, rounded and clipped; uint8 is returned as it is."""
    if picture.dtype == np.uint8:
        return picture
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def picture_rng(name: str, index: int) -> np.random.Generator:
    """The random generator of one validation picture: the same in every run and on every machine.

    Args:
        name: file name without folder and extension.
        index: place of the picture in its sorted data set, from 0.
    """
    digest = hashlib.sha256(f'{index}/{name}'.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], 'little'))


@dataclass(frozen=True)
class Number:
    """A strength that is one number in the options."""

    key: str
    least: float
    greatest: float
    meaning: str
    """For the options reference, with an example."""
    whole: bool = False
    """Whether only whole numbers are allowed."""

    def read(self, value: Any) -> list[Any]:
        """The values for the constructor. Raises UsageError where the kind of value is wrong."""
        if not _is_number(value):
            raise UsageError(f'degradation.{self.key}: {value!r} is not a number')
        return [value]


@dataclass(frozen=True)
class Range(Number):
    """A strength that is drawn, written as ``[least, greatest]`` in the options."""

    def read(self, value: Any) -> list[Any]:
        if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))):
            raise UsageError(f'degradation.{self.key}: {value!r} is not a range of two numbers [low, high]')
        return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Degradation(ABC):
    """What happens to a clean picture. Immutable; all randomness comes from the generator given.

    A subclass is a frozen dataclass whose fields are its strengths, those of ``options`` in their order; its
    constructor refuses values that are not allowed, with a UsageError. ``str()`` of one is its text form.
    """

    type: ClassVar[str]
    """Name in options files, ``degradation.type``."""
    summary: ClassVar[str]
    """What it is, in a few words, for the options reference."""
    form: ClassVar[str]
    """An example of its text form, as on the command line, with what its numbers mean: ``noise0-50 (sigma of 255)``."""
    text: ClassVar[str]
    """Regular expression of the text form; its groups go to ``from_text``."""
    options: ClassVar[tuple[Number, ...]] = ()
    """Its strengths in options files."""
    rescales: ClassVar[bool] = False
    """Whether it makes pictures smaller by a factor: the file's scale, which ``from_values`` is given."""
    place: ClassVar[int] = 100
    """Where it stands in lists, and how early it is asked whether a network undoes it; the least first."""

    @classmethod
    def from_text(cls, *groups: str) -> Degradation:
        """From the groups of ``text``; one that took no part is ''. Here: numbers, one or a range of them.

        Raises UsageError or ValueError where they make none.
        """
        low, high = groups
        whole = cls.options[0].whole
        return cls(*(int(number) if whole else float(number) for number in (low, high or low)))

    @classmethod
    def from_values(cls, values: list[Any], scale: int) -> Degradation:
        """From the values of ``options``, in a row, and the scale of the options file."""
        return cls(*values)

    @classmethod
    def detect(cls, gain: Callable[[Degradation], float], scale: int) -> Degradation | None:
        """This degradation in the strength that a network was trained to undo; None where it is not of this kind.

        Asked for networks of a scale above 1 only where ``rescales`` is set, and of others only where it is not.

        Args:
            gain: by how many dB the network improves clean pictures that are degraded so; for a scale of 1 only.
            scale: of the network.
        """
        return None

    @property
    def scale(self) -> int:
        """Size of the clean picture divided by that of the degraded one."""
        return 1

    @property
    def grid(self) -> int:
        """Pixels of the clean picture after which the degradation repeats; a part cut from it begins on a multiple."""
        return 1

    @property
    def margin(self) -> int:
        """Pixels around a part of the clean picture that still influence the degraded part."""
        return 0

    @abstractmethod
    def degrade(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws a strength and degrades.

        Args:
            clean: (H, W, C) uint8, or float32 in [0, 1]; RGB or one channel.
            rng: where strength and noise come from.

        Returns:
            (H / scale, W / scale, C) float32. In 8-bit steps of [0, 1], except for noise, which is neither rounded
            nor clipped.
        """

    def context(self, part: Region, size: tuple[int, int]) -> Region:
        """What must be degraded of a picture of ``size`` (H, W), for ``part`` to become as if all of it were."""
        top = max(0, part.top - self.margin) // self.grid * self.grid
        left = max(0, part.left - self.margin) // self.grid * self.grid
        bottom = min(size[0], -(-(part.bottom + self.margin) // self.grid) * self.grid)
        right = min(size[1], -(-(part.right + self.margin) // self.grid) * self.grid)
        return Region(top, left, bottom - top, right - left)

    @staticmethod
    def parse(text: str) -> Degradation:
        """Reads a text form such as ``noise0-50``, ``jpeg10-90``, ``bicubic4``. Raises UsageError for anything else."""
        for kind in registered_degradations().values():
            match = re.fullmatch(kind.text, text)
            if match is not None:
                try:
                    return kind.from_text(*match.groups(default=''))
                except ValueError:
                    break
        raise UsageError(f'degradation {text!r} is not {text_forms()}')

    @staticmethod
    def from_options(options: Mapping[str, Any], scale: int) -> Degradation:
        """Reads ``{type: noise, sigma: [0, 50]}``, ``{type: jpeg, quality: [10, 90]}``, ``{type: bicubic}``, ….

        Args:
            options: the ``degradation`` block of a data set's options.
            scale: of the whole options file; a degradation that rescales takes it, the others need 1.

        Raises:
            UsageError: A wrong or missing key, a wrong value, or a scale that does not fit.
        """
        kinds = registered_degradations()
        kind = kinds.get(str(options.get('type')))
        if kind is None:
            raise UsageError(f'degradation.type: {options.get("type")!r} is not one of {", ".join(kinds)}')
        keys = [option.key for option in kind.options]
        wrong = [name for name, value in options.items() if name not in ('type', *keys) and value is not None]
        if wrong:
            takes = ' and '.join(keys) or 'nothing but its type'
            raise UsageError(f'degradation.{wrong[0]}: unknown; {kind.type} takes {takes}')
        if scale != 1 and not kind.rescales:
            raise UsageError(f'degradation.type: {kind.type} needs scale 1, not {scale}')
        values = [value for option in kind.options for value in option.read(options.get(option.key))]
        return kind.from_values(values, scale)


_Class = TypeVar('_Class', bound=type[Degradation])
_registered: dict[str, type[Degradation]] = {}


def register_degradation(kind: _Class) -> _Class:
    """Class decorator: makes a degradation known to options files, the command line and detection.

    Raises UsageError where another has its name.
    """
    if kind.type in _registered:
        raise UsageError(f'degradation {kind.type!r} is registered already, as {_registered[kind.type].__name__}')
    _registered[kind.type] = kind
    return kind


def registered_degradations() -> dict[str, type[Degradation]]:
    """All degradations by ``type``, in the order of lists."""
    return dict(sorted(_registered.items(), key=lambda item: item[1].place))


def text_forms() -> str:
    """The text forms of all degradations, for messages and help."""
    *forms, last = (kind.form for kind in registered_degradations().values())
    return f'{", ".join(forms)} or {last}'
