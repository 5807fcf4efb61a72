"""The weights of a plain network under the names that other programs know."""

from __future__ import annotations

from torch import Tensor

from basicsr_classpruning.archs.adapters import adapter_of
from basicsr_classpruning.routing.network import Subnetwork
from basicsr_classpruning.sparsity.int8 import as_float


def plain_state_dict(network: Subnetwork) -> dict[str, Tensor]:
    """The weights under the keys of the base network as BasicSR, or the program it comes from, builds it.

    Those of 8-bit integers as the float32 values that they stand for.
    """
    return adapter_of(network.options).unfold_params(network.options, as_float(network.net).state_dict())
