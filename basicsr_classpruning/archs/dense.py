"""A dense restoration network with what restoring images needs to know of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from basicsr_classpruning.routing.network import RoutedNetwork, Subnetwork
from basicsr_classpruning.sizes import Inputs, SizeRequirements, run_padded
from basicsr_classpruning.sparsity import NetworkMacs, count_by_module


class DenseNetwork(nn.Module):
    """Wraps a dense network, so that it is restored with and compared like a ClassPruning one.

    Args:
        net: takes images ``(B, C, H, W)`` in [0, 1].
        inputs: what a run of it showed, see ``base_network.find_inputs``.
        options: what rebuilds it, as in ``network_g``.
    """

    def __init__(self, net: nn.Module, inputs: Inputs, options: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.inputs = inputs
        self.options = options

    @property
    def num_in_ch(self) -> int:
        """C."""
        return self.inputs.channels

    @property
    def sizes(self) -> SizeRequirements:
        """Which image sizes the network takes, and its scale."""
        return self.inputs.sizes

    @property
    def scale(self) -> int:
        """Output size over input size."""
        return self.sizes.scale

    def macs(self, height: int, width: int) -> NetworkMacs:
        """MACs of one image of the given size, counted; padding that the network needs is included."""
        size = (self.num_in_ch, *self.sizes.padded_size(height, width))
        dense = count_by_module(self.net, size)['']
        return NetworkMacs(size, dense, candidates=(dense,), classifier=0, layers=())

    @property
    def dense(self) -> Subnetwork:
        """The network as a subnetwork, its only one."""
        return Subnetwork('dense', self.net.eval, {}, self.options, self.num_in_ch, self.sizes)

    def routed(self) -> RoutedNetwork:
        """This network as inference sees it: a ladder of one."""
        dense, side = self.dense, self.sizes.reference
        return RoutedNetwork(self, (dense,), dense, None, lambda: self.macs(side, side))

    def forward(self, x: Tensor) -> Tensor:
        """Restores images ``(B, C, H, W)`` of any size."""
        return run_padded(self.net, x, self.sizes)
