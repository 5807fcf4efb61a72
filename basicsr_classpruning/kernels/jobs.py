"""Which rectangles of an image take which weights: made once for an image, the same for all layers of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr_classpruning.kernels import native


@dataclass(frozen=True)
class JobList:
    """A map of cells, and the rectangles that the kernels compute one by one.

    A layer's features have as many pixels a cell as there are at its place in the network. Where nothing runs, nothing
    is written, but in cells that others may read: those get what the layer's epilogue makes of zeros.
    """

    cells: Tensor
    """``(rows, columns)`` int32: places of weights, or ``native.NOTHING``."""
    zeroed: int | None
    """Distance, in cells, of what others may read; None: everything."""
    _members: dict[torch.device, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.cells.shape[0], self.cells.shape[1]

    @cached_property
    def by_weight(self) -> Tensor:
        """Jobs of a layer with weights for each candidate, ``(J, 5)`` int32; see ``native.JOB_FIELDS``."""
        return _join(self._known)

    @cached_property
    def together(self) -> Tensor:
        """Jobs of a layer with the same weights for all candidates: those of the place 0."""
        return _join(self._known.clamp(max=0))

    def members(self, count: int, device: torch.device) -> list[Tensor]:
        """Numbers of the cells of each of ``count`` weights, counted row by row."""
        if device not in self._members:
            flat = self.cells.flatten()
            self._members[device] = [(flat == k).nonzero()[:, 0].to(device) for k in range(count)]
        return self._members[device]

    @cached_property
    def _known(self) -> Tensor:
        """Cells, without those that nobody reads."""
        if self.zeroed is None:
            return self.cells
        runs = (self.cells != native.NOTHING).float()[None, None]
        near = F.max_pool2d(runs, 2 * self.zeroed + 1, 1, self.zeroed)[0, 0] > 0
        return torch.where(near, self.cells, native.LEFT_OUT).int()


def _join(cells: Tensor) -> Tensor:
    library = native.load()
    assert library is not None
    return library.join_cells(cells)
