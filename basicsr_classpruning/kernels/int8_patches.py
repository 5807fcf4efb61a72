"""Layers of 8-bit integers whose patches take the weights of different candidates: one call a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from basicsr_classpruning.kernels.gathering import alike
from basicsr_classpruning.kernels.int8_layers import Int8KernelConv2d
from basicsr_classpruning.kernels.int8_ops import (
    FLOATS,
    INTEGERS,
    UNIT,
    PreparedConv2d,
    int8_quantize,
    prepare_conv2d,
    units,
)
from basicsr_classpruning.kernels.jobs import JobList, jobs_of_call, weight_array
from basicsr_classpruning.kernels.layers import Epilogue
from basicsr_classpruning.kernels.ops import activate
from basicsr_classpruning.sparsity.int8 import Int8Conv2d


class PatchedInt8Conv2d(Int8KernelConv2d):
    """A convolution of stride 1 that keeps the size, with the weights of several candidates, and its epilogue.

    Inputs and outputs are those of ``Int8KernelConv2d``.

    Args:
        layers: one of each candidate, of one input range.
        epilogue: of all of them.
    """

    def __init__(self, layers: Sequence[Int8Conv2d], epilogue: Epilogue) -> None:
        super().__init__(layers[0], epilogue)
        self._alike = alike(layers)
        others = [] if self._alike else [Int8KernelConv2d(layer, epilogue) for layer in layers[1:]]
        self.others = nn.ModuleList(others)
        made = [self, *others]
        self._weights = weight_array([o.packed for o in made], [o.bias for o in made], [o.scale for o in made])

    def forward(  # type: ignore[override]
        self, x: Tensor, jobs: JobList, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Floats, activations, or the pair of them; where ``jobs`` have nothing to do, whatever was there."""
        x = (x if x.dtype == torch.uint8 else int8_quantize(x, self.range.numbers)).contiguous()
        if residual is None or tuple(residual.shape) == self.output_shape(x):
            y, q = self._run_jobs(x, jobs, residual, *self.epilogue, self._made)
        else:
            floats = self._add_later(x, jobs, residual)
            q = None if self.makes is None else int8_quantize(floats, self.makes.numbers)
            y = floats if self.makes_floats else None
        if y is None or q is None:
            return cast('Tensor', q if y is None else y)
        return y, q

    def _run_jobs(
        self, x: Tensor, jobs: JobList, residual: Tensor | None, activation: str, order: str, made: int
    ) -> tuple[Tensor | None, Tensor | None]:
        order = 'none' if residual is None else order
        key = (x.shape, activation, order, made)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepare_jobs(x, activation, order, made)
            self._prepared.keep(key, prepared)
        listed = jobs.together if self._alike else jobs.by_weight
        of_call = jobs_of_call(listed, self._weights, jobs.part_side(x.shape[2]))
        if residual is not None and residual.dtype != torch.float32:
            raise ValueError(f'residual must be float32, not {residual.dtype}')
        residual = None if residual is None else residual.contiguous()
        return prepared.run(x, residual, self.may_overwrite, of_call)

    def _prepare_jobs(self, x: Tensor, activation: str, order: str, made: int) -> PreparedConv2d:
        expected = (x.shape[0], units(self.geometry[1]), *x.shape[2:4], UNIT)
        if x.shape != expected:
            raise ValueError(f'x must be {expected} uint8, not {tuple(x.shape)}')
        of_all = (None, None, None, self.factor, self.slope_of(activation))
        next_range = self.makes.numbers if self.makes is not None and made & INTEGERS else None
        rest = (self.geometry, self.range.zero, self.shuffle, made, next_range)
        return prepare_conv2d(x, of_all, activation, order, *rest)

    def _add_later(self, x: Tensor, jobs: JobList, residual: Tensor) -> Tensor:
        """Floats, to which a residual of another shape is added."""
        activation, order = self.epilogue
        after = order == 'after'
        y, _ = self._run_jobs(x, jobs, None, activation if after else 'none', 'none', FLOATS)
        assert y is not None
        return y + residual if after else activate(y + residual, activation, self.slope)
