"""A dense restoration network with what restoring pictures needs to know of it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from basicsr_classpruning.archs.sizes import Sizes, probe_sizes, run_padded
from basicsr_classpruning.sparsity import count_by_module


class DenseNetwork(nn.Module):
    """Wraps a dense network, so that it is restored with and compared like a ClassPruning one.

    Args:
        net: takes images ``(B, C, H, W)`` in [0, 1].
        num_in_ch: C.
        options: what rebuilds it, as in ``network_g``.
    """

    def __init__(self, net: nn.Module, num_in_ch: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.num_in_ch = num_in_ch
        self.options = options

    @cached_property
    def sizes(self) -> Sizes:
        """Which image sizes the network takes, and its scale."""
        return probe_sizes(self.net, self.num_in_ch)

    @property
    def scale(self) -> int:
        """Output size over input size."""
        return self.sizes.scale

    def macs(self, height: int, width: int) -> int:
        """MACs of one image of the given size, counted."""
        size = (self.num_in_ch, self.sizes.padded(height), self.sizes.padded(width))
        return count_by_module(self.net, size)['']

    @cached_property
    def reference_macs(self) -> int:
        """MACs of a small image (``sizes.reference``); those of other sizes are in proportion to the pixels."""
        return self.macs(self.sizes.reference, self.sizes.reference)

    def forward(self, x: Tensor) -> Tensor:
        """Restores images ``(B, C, H, W)`` of any size."""
        return run_padded(self.net, x, self.sizes)
