"""MACs, against mmengine's own totals and against counting weights that are not zero."""

from __future__ import annotations

import copy
import logging
import random
import warnings

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from tiny import NETWORKS, classpruning, in_threads
from torch import nn

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sparsity import (
    Pattern,
    choose_layers,
    count_by_module,
    freeze,
    network_macs,
    sparsify,
)

HEIGHT, WIDTH = 24, 16  # multiples of every network's granularity


def mmengine_total(net: nn.Module, channels: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            info = get_model_complexity_info(net, (channels, HEIGHT, WIDTH), show_table=False, show_arch=False)
        finally:
            logging.disable(logging.NOTSET)
    return int(info['flops'])


def weighted_macs(net: nn.Module, channels: int) -> dict[str, tuple[int, int]]:
    """For each convolution and linear layer: non-zero and all weights, times the positions of its outputs."""
    counts: dict[str, tuple[int, int]] = {}

    def hook(name: str):
        def count(module, _inputs, output):
            weight = module.weight
            channel = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
            positions = output.numel() // output.shape[channel]
            before = counts.get(name, (0, 0))
            counts[name] = (
                before[0] + int((weight != 0).sum()) * positions, before[1] + weight.numel() * positions,
            )  # fmt: skip

        return count

    net = copy.deepcopy(net)
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        net(torch.rand(1, channels, HEIGHT, WIDTH))
    return counts


@pytest.mark.parametrize('name', NETWORKS)
def test_totals_of_all_networks(name):
    net = classpruning(name)
    macs = net.macs(HEIGHT, WIDTH)
    assert macs.dense == mmengine_total(net.dense.net, 3)
    assert macs.classifier == mmengine_total(net.classifier, 3)
    layers = weighted_macs(net.dense.net, 3)
    rest = macs.dense - sum(full for _, full in layers.values())  # attention's products, normalisation, resizing
    for k, candidate in enumerate(net.candidates):
        left = weighted_macs(net.subnetwork(candidate).net, 3)
        assert macs.candidates[k] == rest + sum(nonzero for nonzero, _ in left.values())
    for layer in macs.layers:
        assert layer.dense == layers[layer.name][1]
        assert layer.pruned == (layer.candidates != (layer.dense,) * 3)
        assert not layer.pruned or layer.candidates == (layer.dense // 4, layer.dense // 2, layer.dense)
    assert list(macs.candidates) == sorted(macs.candidates)
    assert macs.candidates[-1] == macs.dense


def test_attention_products_are_counted_and_not_pruned():
    net = classpruning('SwinIR')
    macs = net.macs(16, 16)
    tokens, window, width, blocks = 16 * 16, 16, 16, 2
    products = blocks * 2 * tokens * window * width  # q·kᵀ and attention·v in windows of 4×4 tokens
    attention = count_by_module(net.dense.net, macs.size)['layers.0.residual_group.blocks.0.attn']
    inside = sum(layer.dense for layer in macs.layers if '.blocks.0.attn.' in layer.name)
    assert attention - inside == products // blocks
    assert macs.candidates[0] - sum(layer.candidates[0] for layer in macs.layers) >= products


def test_macs_grow_with_the_pixels_and_include_padding():
    net = classpruning('EDSR')
    assert net.macs(48, 32).dense == 4 * net.macs(24, 16).dense
    windowed = classpruning('SwinIR')
    assert windowed.macs(13, 14).size == (3, 16, 16)
    assert windowed.macs(13, 14) == windowed.macs(16, 16)


def test_costs_are_fractions_of_the_dense_network_and_include_the_classifier():
    macs = classpruning('EDSR').reference_macs
    assert macs.size == (3, 64, 64)
    assert macs.costs == tuple((value + macs.classifier) / macs.dense for value in macs.candidates)
    assert macs.costs[-1] > 1


def test_a_layer_used_twice_counts_twice():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(4, 8, 1), conv, nn.ReLU(), conv)
    patterns = (Pattern(1, 4), Pattern(4, 4))
    choices = choose_layers(net, patterns)
    sparsify(net, choices, own_weights=False)
    macs = network_macs(freeze(net, None), nn.Conv2d(4, 1, 1), choices, 2, (4, 6, 5))
    assert macs.dense == 30 * (4 * 8 + 2 * 8 * 8 * 9)
    assert macs.candidates == (30 * (4 * 8 + 2 * 8 * 8 * 9 // 4), macs.dense)
    assert macs.classifier == 30 * 4


def test_block_and_shared_taps_save_as_much():
    # The last layer's three output channels are no multiple of the block.
    fine, coarse = (
        classpruning('EDSR', skip=['conv_last'], **sharing).reference_macs
        for sharing in ({}, {'block': 4, 'share_taps': True})
    )
    assert fine.candidates == coarse.candidates


@pytest.mark.parametrize('unit', [2, 4])
@pytest.mark.parametrize('width', [24, 23, 21])  # the last group is shorter, and so is its last unit
def test_units_are_counted_as_the_weights_that_are_not_zero(unit, width):
    net = classpruning(
        'EDSR',
        base={'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': width, 'num_block': 1, 'upscale': 2},
        candidates=['4:16', '8:16', '12:16', '16:16'],
        unit=unit,
    )
    macs = net.macs(HEIGHT, WIDTH)
    for k, candidate in enumerate(net.candidates):
        counted = weighted_macs(net.subnetwork(candidate).net, 3)
        assert {layer.name: layer.candidates[k] for layer in macs.layers} == {
            name: nonzero for name, (nonzero, _) in counted.items()
        }
    assert sum(layer.pruned for layer in macs.layers) >= 4


def test_counting_leaves_no_trace(caplog):
    net = classpruning('RCAN').dense.net.train()
    caplog.clear()  # BasicSR says that it built the network
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            count_by_module(net, (3, 16, 16))
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
    assert not [w for w in caught if 'meshgrid' not in str(w.message)]
    assert not caplog.records
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_counting_in_several_threads():
    net = classpruning('EDSR')
    assert len(set(in_threads(4, lambda _: net.macs(16, 16)))) == 1


def test_counting_draws_no_random_numbers():
    net = nn.Conv2d(3, 8, 3)
    before = random.getstate(), torch.get_rng_state()
    count_by_module(net, (3, 16, 16))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


class Products(nn.Module):
    """Attention in three ways, a depthwise layer, and weights that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body, self.norm = nn.Conv2d(8, 8, 1), nn.LayerNorm(8)
        self.bare = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(self.body(self.deep(self.head(x))), self.bare)
        tokens = self.norm(y.flatten(2).transpose(1, 2))  # (B, H · W, 8)
        heads = tokens.unsqueeze(1)
        y = nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]
        y = (y @ tokens.transpose(1, 2)) @ tokens
        return torch.einsum('bnc,bmc->bnm', y, tokens)


def test_what_is_left_dense_is_told_by_kind():
    net = Products()
    choices = choose_layers(net, [Pattern(2, 4)])
    pixels = 30
    macs = network_macs(net, nn.Conv2d(3, 1, 1), choices, 1, (3, 6, 5))
    assert macs.left_dense == {
        'attention and other products': 5 * 8 * pixels**2,  # two, two and one
        'the first layer': 3 * 8 * 9 * pixels,
        'parameters outside of layers': 64 * pixels,
        'a depthwise convolution': 8 * 9 * pixels,
        'normalisation': dict(macs.others)['normalisation'],
    }
    pruned = next(layer for layer in macs.layers if layer.pruned)
    assert sum(macs.left_dense.values()) + pruned.dense == macs.dense
    assert macs.candidates == (macs.dense - pruned.dense // 2,)


def test_a_norm_over_many_dimensions_is_counted_and_a_network_without_layers_refused():
    net = nn.Sequential(nn.Unflatten(1, (1, 1, 1, 3)), nn.LayerNorm(8), nn.Flatten(1, 4), nn.Conv2d(3, 3, 1))
    assert count_by_module(net, (3, 8, 8)) == {'': 1536, '0': 0, '1': 960, '2': 0, '3': 576}
    with pytest.raises(UserError, match='Identity computes nothing that could be saved'):
        network_macs(nn.Identity(), nn.Conv2d(3, 1, 1), [], 1, (3, 8, 8))
