"""Permutes the channels of an EDSR network so that similar output channels stand together and share a block's mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from basicsr_classpruning.checkpoint import read_checkpoint, write_checkpoint


def permute_checkpoint(source: Path, out: Path, block: int, share_taps: bool) -> None:
    """Writes a checkpoint of the same function with other channel orders."""
    checkpoint = read_checkpoint(source)
    weights = {name: permuted(state, block, share_taps) for name, state in checkpoint.weights.items()}
    write_checkpoint(out, weights, checkpoint.network_g)


def permuted(state: Mapping[str, Tensor], block: int, share_taps: bool) -> dict[str, Tensor]:
    """An EDSR's weights with channels in another order, in which the network computes the same.

    Inside each residual block the order is free. The channels that blocks add to are common to all of them, and are
    ordered by all the layers that write them. The up-sampling's are moved in fours, which become the pixels of one.

    Args:
        state: state dict of BasicSR's EDSR.
        block: output channels that will share a mask.
        share_taps: whether all taps of a kernel will share it too.
    """
    state = dict(state)

    def pattern(name: str) -> Tensor:
        """What the weights of each output channel ask of a mask, ``(O, …)``, of length 1."""
        weight = state[f'{name}.weight'].float()
        wanted = weight.square().sum((2, 3)).sqrt() if share_taps else weight.abs()
        return torch.nn.functional.normalize(wanted.flatten(1), dim=1)

    def reorder(name: str, dimension: int, order: Tensor) -> None:
        for kind in ('weight', 'bias') if dimension == 0 else ('weight',):
            state[f'{name}.{kind}'] = state[f'{name}.{kind}'].index_select(dimension, order)

    blocks = sorted({key.rsplit('.', 2)[0] for key in state if key.endswith('.conv1.weight')})
    for name in blocks:
        order = order_by_likeness(pattern(f'{name}.conv1'), block)
        reorder(f'{name}.conv1', 0, order)
        reorder(f'{name}.conv2', 1, order)
    writers = [*(f'{name}.conv2' for name in blocks), 'conv_after_body']
    order = order_by_likeness(torch.cat([pattern(name) for name in writers], 1), block)
    for name in ('conv_first', *writers):
        reorder(name, 0, order)
    for name in (*(f'{name}.conv1' for name in blocks), 'conv_after_body', 'upsample.0'):
        reorder(name, 1, order)
    if block > 4:
        pixels = pattern('upsample.0').unflatten(0, (-1, 4)).flatten(1)
        order = order_by_likeness(pixels, block // 4)
        reorder('upsample.0', 0, (order[:, None] * 4 + torch.arange(4)).flatten())
        reorder('conv_last', 1, order)
    return state


def order_by_likeness(patterns: Tensor, block: int) -> Tensor:
    """An order ``(O,)`` of rows ``(O, K)`` in which the rows of each block of it are alike.

    Rows of two blocks are exchanged as long as that raises the sum of the products of rows that share a block.
    """
    products = (patterns @ patterns.T).double().fill_diagonal_(0)
    owner = torch.arange(len(patterns)) // block
    while True:
        to_blocks = products @ torch.nn.functional.one_hot(owner).double()
        to_others = to_blocks[:, owner]  # of each row to the block of each other one
        own = to_others.diagonal()
        gain = to_others + to_others.T - own[:, None] - own[None] - 2 * products
        one, other = divmod(int(gain.argmax()), len(patterns))
        if gain[one, other] < 1e-9:
            return owner.argsort(stable=True)
        owner[[one, other]] = owner[[other, one]]
