"""The tables there are."""

from __future__ import annotations

from typing import Any

from tools.benchmark_tables.plan import (
    JPEG,
    LARGE,
    NOISE,
    OTHER,
    SUPER_RESOLUTION_X2,
    SUPER_RESOLUTION_X4,
    Recipe,
    Table,
    Task,
    Training,
)

# Fitting costs the work of 600 tiles of 96 pixels (530 for EDSR) and all candidates, forward only, here in steps of 12
# crops of the training's size, forward and backward. For small crops (×4: 24 pixels) and short trainings that is too
# much.
_FOUR = Recipe()
_FOUR_NOISE = Recipe(fit=150)
_FOUR_EDSR = Recipe(fit=235)
_FIVE_EDSR = Recipe(('3:16', '4:16', '6:16', '10:16', '16:16'), batch=4, sparse_batch=2, fit=294)
# Every rival, on every test set. Narrower dense networks have about 25 and 50 % of the MACs, which go with the square
# of the width.
_DEPTH: dict[str, Any] = {
    'narrow': (16, 22),
    'by_magnitude': ('1:4', '2:4'),
    'calibrated': ('4:16', '6:16', '8:16'),
    'test_sets': (LARGE, 'Set14', OTHER),
    'repeated': ('dense', 'static_8_16', 'classpruning'),
}
_COLOUR: dict[str, Any] = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 32}
# The same networks with one N in all layers, and with an N for each.
_EDSR: dict[str, Any] = {
    'task': SUPER_RESOLUTION_X2,
    'base': {'type': 'EDSR', **_COLOUR, 'num_block': 8, 'upscale': 2},
    'first': Training(6000, 5e-4),
    'further': Training(1500, 1e-4),
}


def _breadth(
    name: str,
    title: str,
    task: Task,
    recipe: Recipe = _FOUR,
    per_layer: tuple[str, ...] = ('8:16',),
    timed_apart: bool = False,
    **base: Any,
) -> Table:
    """Other networks, trained for a short time, with the strongest rival only."""
    return Table(
        name=name,
        title=title,
        task=task,
        base=base,
        first=Training(4000, 5e-4),
        further=Training(1000, 1e-4),
        recipe=recipe,
        per_layer=per_layer,
        timed_apart=timed_apart,
    )


TABLES = (
    Table(
        name='dncnn_noise_32',
        title='DnCNN, 32 features, colour noise of strength 0 to 50',
        task=NOISE,
        base={'type': 'DnCNN', **_COLOUR, 'num_conv': 17},
        first=Training(8000, 5e-4),
        further=Training(2000, 1e-4),
        recipe=_FOUR_NOISE,
        **_DEPTH,
    ),
    Table(
        name='edsr_x2_32',
        title='EDSR ×2, 32 features, 8 blocks',
        recipe=_FOUR_EDSR,
        timed_apart=True,
        **_EDSR,
        **_DEPTH,
    ),
    Table(
        name='edsr_x2_32_layers',
        title='EDSR ×2, 32 features, 8 blocks, per-layer N',
        recipe=_FIVE_EDSR,
        **_EDSR,
        per_layer=('4:16', '6:16', '8:16'),
        test_sets=(LARGE, 'Set14'),
        repeated=('classpruning',),
        variants_of=_FOUR_EDSR,
    ),
    Table(
        name='edsr_x2_64',
        title='EDSR ×2, 64 features, 16 blocks, per-layer N',
        task=SUPER_RESOLUTION_X2,
        base={'type': 'EDSR', **_COLOUR, 'num_feat': 64, 'num_block': 16, 'upscale': 2},
        first=Training(8000, 5e-4),
        further=Training(2000, 1e-4),
        recipe=_FIVE_EDSR,
        narrow=(32, 44),
        per_layer=('4:16', '6:16', '8:16'),
        test_sets=(LARGE, 'Set14'),
        repeated=('dense', 'static_8_16', 'static_8_16_layers', 'classpruning'),
    ),
    _breadth(
        'msrresnet_x4_32',
        'MSRResNet ×4, 32 features, 8 blocks',
        SUPER_RESOLUTION_X4,
        per_layer=(),  # trained before there was per-layer N
        timed_apart=True,
        type='MSRResNet',
        **_COLOUR,
        num_block=8,
        upscale=4,
    ),
    _breadth(
        'srvgg_x4_32',
        'SRVGGNetCompact ×4, 32 features, 8 layers',
        SUPER_RESOLUTION_X4,
        timed_apart=True,
        type='SRVGGNetCompact',
        **_COLOUR,
        num_conv=8,
        upscale=4,
        act_type='prelu',
    ),
    _breadth(
        'rcan_x2_32',
        'RCAN ×2, 32 features, 2 groups of 4 blocks',
        SUPER_RESOLUTION_X2,
        type='RCAN',
        **_COLOUR,
        num_group=2,
        num_block=4,
        upscale=2,
    ),
    _breadth(
        'dncnn_jpeg_32',
        'DnCNN, 32 features, JPEG of quality 10 to 90',
        JPEG,
        recipe=_FOUR_NOISE,
        type='DnCNN',
        **_COLOUR,
        num_conv=17,
    ),
    _breadth(
        'nafnet_noise_16',
        'NAFNet, width 16, colour noise of strength 0 to 50',
        NOISE,
        recipe=_FOUR_NOISE,
        type='NAFNet',
        img_channel=3,
        width=16,
        enc_blk_nums=[1, 1, 2],
        middle_blk_num=2,
        dec_blk_nums=[1, 1, 1],
    ),
    _breadth(
        'swinir_x2_32',
        'SwinIR ×2, 32 features, 3 groups of 2 layers',
        SUPER_RESOLUTION_X2,
        type='SwinIR',
        upscale=2,
        in_chans=3,
        img_size=48,
        window_size=8,
        img_range=1.0,
        depths=[2, 2, 2],
        embed_dim=32,
        num_heads=[2, 2, 2],
        mlp_ratio=2,
        upsampler='pixelshuffledirect',
        resi_connection='1conv',
    ),
)
