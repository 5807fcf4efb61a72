"""One candidate as a network of its own, with its weights under the names that other programs know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import adapter_of
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.sizes import Sizes
from basicsr_classpruning.errors import UsageError


@dataclass(frozen=True)
class StaticNetwork:
    """A network that restores every image alike."""

    name: str
    """The candidate, such as ``'2:4'``, or ``'dense'``."""
    net: nn.Module
    """Plain layers, zeros in place, eval mode; takes images ``(B, C, H, W)`` in [0, 1]."""
    options: dict[str, Any]
    """``network_g`` of the base network."""
    channels: int
    """C."""
    sizes: Sizes
    """Sizes of images that the network takes."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the keys of the base network as BasicSR, or the program it comes from, builds it."""
        return adapter_of(self.options).unfold_params(self.options, self.net.state_dict())


def take_candidate(network: ClassPruning | DenseNetwork, candidate: str | None) -> StaticNetwork:
    """Takes one candidate out of a network, the dearest where none is named; a dense network is taken as it is.

    Raises UsageError for a candidate that the network does not have.
    """
    if isinstance(network, DenseNetwork):
        if candidate is not None:
            raise UsageError(f'--candidate {candidate}: this network is dense and has no candidates')
        return StaticNetwork('dense', network.net.eval(), network.options, network.num_in_ch, network.sizes)
    name = candidate or network.candidates[-1]
    options = cast(dict[str, Any], network.options['base'])
    return StaticNetwork(name, network.frozen(name), options, network.num_in_ch, network.sizes)
