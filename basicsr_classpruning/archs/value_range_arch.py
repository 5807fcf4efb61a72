"""Networks that work on values in 0 … 255, among others that work in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import WrappingAdapter, register_adapter
from basicsr_classpruning.archs.base_network import build_base

_NAME = 'ValueRange'
_PREFIX = 'ranged.'


@ARCH_REGISTRY.register()
class ValueRange(nn.Module):
    """Shows images in [0, 1] to a network that works in 0 … ``value_range``. (B, C, H, W) to (B, C', H · s, W · s).

    Its checkpoints have the names of the network inside, so that programs which know that one read them.

    Args:
        net: options of the network, or the network itself.
        value_range: what white is to it.
    """

    def __init__(self, net: Mapping[str, Any] | nn.Module, value_range: float = 255) -> None:
        super().__init__()
        self.ranged = net if isinstance(net, nn.Module) else build_base(net)
        self.value_range = value_range

    def forward(self, x: Tensor) -> Tensor:
        return self.ranged(x * self.value_range) / self.value_range


register_adapter(_NAME)(lambda: WrappingAdapter(_PREFIX, lambda net, options: ValueRange(net, options['value_range'])))


def in_range(options: Mapping[str, Any], value_range: float) -> dict[str, Any]:
    """Options of a network that works in [0, 1], from those of one that works in 0 … ``value_range``."""
    return dict(options) if value_range == 1 else {'type': _NAME, 'value_range': value_range, 'net': dict(options)}
