"""The weights of a plain network under the names that other programs know."""

from __future__ import annotations

from torch import Tensor

from basicsr_classpruning.archs.adapters import adapter_of
from basicsr_classpruning.routing.network import Subnetwork


def plain_state_dict(network: Subnetwork) -> dict[str, Tensor]:
    """The weights under the keys of the base network as BasicSR, or the program it comes from, builds it."""
    return adapter_of(network.options).unfold_params(network.options, network.net.state_dict())
