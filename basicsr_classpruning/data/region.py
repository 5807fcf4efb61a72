"""Rectangles of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right."""
        return self.left + self.width

    def inside(self, outer: Region) -> Region:
        """The same rectangle, seen from the corner of ``outer``."""
        return Region(self.top - outer.top, self.left - outer.left, self.height, self.width)

    def enlarged(self, scale: int) -> Region:
        """The same rectangle in a picture ``scale`` times as large."""
        return Region(self.top * scale, self.left * scale, self.height * scale, self.width * scale)

    def reduced(self, scale: int) -> Region:
        """The same rectangle in a picture shrunk by ``scale``, which divides its sides and corner."""
        return Region(self.top // scale, self.left // scale, self.height // scale, self.width // scale)

    def of(self, picture: np.ndarray) -> np.ndarray:
        """That part of an (H, W, C) picture, as a view."""
        return picture[self.top : self.bottom, self.left : self.right]
