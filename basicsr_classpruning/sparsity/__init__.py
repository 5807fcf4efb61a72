"""N:M patterns and masks, the layers that carry them, applying them to a network, MACs. Tensors and modules only."""

from basicsr_classpruning.sparsity.apply import LayerChoice, LayerUse, choose_layers, freeze, sparse_layers, sparsify
from basicsr_classpruning.sparsity.layers import Selection, SparseConv2d, SparseConvTranspose2d, SparseLinear
from basicsr_classpruning.sparsity.macs import LayerMacs, NetworkMacs, count_by_module, network_macs
from basicsr_classpruning.sparsity.pattern import Pattern

__all__ = [
    'LayerChoice',
    'LayerMacs',
    'LayerUse',
    'NetworkMacs',
    'Pattern',
    'Selection',
    'SparseConv2d',
    'SparseConvTranspose2d',
    'SparseLinear',
    'choose_layers',
    'count_by_module',
    'freeze',
    'network_macs',
    'sparse_layers',
    'sparsify',
]
