"""Which rectangles of an image take which weights: made once for an image, the same for all layers of a network."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.kernels import native


@dataclass(frozen=True)
class JobList:
    """A map of cells, and the rectangles that the kernels compute one by one.

    A layer's features have as many pixels a cell as there are at its place in the network. Where nothing runs, nothing
    is written, but in parts of cells that others may read: those get what the layer's epilogue makes of zeros.
    """

    cells: np.ndarray
    """``(rows, columns)`` int32: places of weights, or ``native.NOTHING``."""
    zeroed: int | None
    """Distance, in parts of cells, of what others may read; None: everything."""
    parts: int = 1
    """Of a cell each way: jobs are counted in them, so that no more is zeroed than is read."""
    _members: dict[torch.device, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.cells.shape[0], self.cells.shape[1]

    def part_side(self, height: int) -> int:
        """Pixels of a part's side in features of a height."""
        return height // (self.cells.shape[0] * self.parts)

    @cached_property
    def by_weight(self) -> Tensor:
        """Jobs of a layer with weights for each candidate, ``(J, 5)`` int32; see ``native.JOB_FIELDS``."""
        return _join(self._known)

    @cached_property
    def together(self) -> Tensor:
        """Jobs of a layer with the same weights for all candidates: those of the place 0."""
        return _join(np.minimum(self._known, 0))

    def members(self, count: int, device: torch.device) -> list[Tensor]:
        """Numbers of the cells of each of ``count`` weights, counted row by row."""
        if device not in self._members:
            found = (np.flatnonzero(self.cells == k) for k in range(count))
            self._members[device] = [torch.from_numpy(cells).to(device) for cells in found]
        return self._members[device]

    @cached_property
    def _known(self) -> np.ndarray:
        """Parts of cells, without those that nobody reads."""
        known = self.cells.repeat(self.parts, 0).repeat(self.parts, 1)
        if self.zeroed is None:
            return known
        near = dilated(known != native.NOTHING, self.zeroed)
        return np.where(near, known, native.LEFT_OUT)


def weight_array(
    packed: Sequence[Tensor], biases: Sequence[Tensor | None], scales: Sequence[Tensor] | None = None
) -> ctypes.Array[native.Weight]:
    """What the jobs of a call may take; only 8-bit integers have scales. The tensors must outlive it."""
    rows = [
        native.Weight(
            one.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if scales is None else scales[place].data_ptr(),
        )
        for place, (one, bias) in enumerate(zip(packed, biases))
    ]
    return (native.Weight * len(rows))(*rows)


def jobs_of_call(jobs: Tensor, weights: ctypes.Array[native.Weight], cell: int) -> native.Jobs:
    """The jobs of one call. What they are made of must outlive it.

    Args:
        jobs: ``(J, 5)`` int32 rows of ``native.JOB_FIELDS``.
        weights: what they take.
        cell: side in pixels of what jobs are counted in.
    """
    return native.Jobs(jobs.data_ptr(), len(jobs), ctypes.addressof(weights), len(weights), cell)


def dilated(runs: np.ndarray, distance: int) -> np.ndarray:
    """Cells at most ``distance`` from one that is true, each way; ``(rows, columns)``."""
    for turned in (False, True):
        source = runs.T if turned else runs
        wider = source.copy()
        for shift in range(1, min(distance, len(source) - 1) + 1):
            wider[:-shift] |= source[shift:]
            wider[shift:] |= source[:-shift]
        runs = wider.T if turned else wider
    return runs


def _join(cells: np.ndarray) -> Tensor:
    library = native.load()
    assert library is not None
    return library.join_cells(torch.from_numpy(np.ascontiguousarray(cells, np.int32)))
