"""PyTorch as it is, and compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from basicsr_classpruning.benchmark.rivals.registry import Conditions, register_rival
from basicsr_classpruning.inference.engines import Engine, dense_engine

_ANY_NUMBER = 2**20  # of shapes: after a few, torch.compile would run others in eager PyTorch without a word


@register_rival('eager')
def eager(conditions: Conditions) -> Engine:
    """PyTorch's own convolutions, channels-last."""
    return dense_engine(conditions.network)


@register_rival('torch-compile')
def torch_compile(conditions: Conditions) -> Engine:
    """``torch.compile``, channels-last, weights frozen (which folds and packs them), one graph for each shape."""
    from torch._dynamo import config

    net = conditions.network.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(net, dynamic=False, options={'freezing': True})
    shapes: set[tuple[int, ...]] = set()

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if tuple(x.shape) in shapes:
            return compiled(x)
        with config.patch(cache_size_limit=_ANY_NUMBER, accumulated_cache_size_limit=_ANY_NUMBER):
            y = compiled(x)
        shapes.add(tuple(x.shape))
        return y

    return run
