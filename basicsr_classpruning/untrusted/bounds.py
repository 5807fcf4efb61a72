"""Keeps a file from asking for far more memory than it has weights: its options say how large a network is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr_classpruning.errors import UserError

_aten = torch.ops.aten
_FACTORIES = {
    _aten.empty.memory_format, _aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.rand.default,
    _aten.randn.default,
}  # fmt: skip
_LARGEST = 2**30  # bytes of one tensor while a network runs on small images


class Bounded(TorchDispatchMode):
    """While it is active, torch refuses to make tensors that are too many or too large for a network of these weights.

    Asked before memory is. Raises UserError, from wherever the tensor is made.

    Args:
        params: the weights for which the network is built.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Half precision is built in single precision, some branches are folded into one: generous to honest files.
        self._bytes = 2**28 + 8 * sum(value.nbytes for value in params.values())
        self._tensors = 10_000 + 8 * len(params)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            self._bytes -= 4 * math.prod(args[0])
            self._tensors -= 1
            if self._bytes < 0 or self._tensors < 0:
                raise UserError('refused: its options ask for a network far larger than its weights')
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.nbytes > _LARGEST:
            raise UserError('refused: its network makes enormous images of small ones')
        return result
