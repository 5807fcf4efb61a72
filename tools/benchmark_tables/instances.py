"""The tables there are."""

from __future__ import annotations

from benchmark_tables.plan import NOISE, SUPER_RESOLUTION_X2, Table, Training


def _dncnn(width: int, narrow: tuple[int, ...]) -> Table:
    return Table(
        name=f'dncnn_noise_{width}',
        title=f'DnCNN, {width} features, colour noise of strength 0 to 50',
        task=NOISE,
        base={'type': 'DnCNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': width, 'num_conv': 17},
        narrow=narrow,
        first=Training(8000, 5e-4),
        further=Training(2000, 1e-4),
        stages={'supernet': 1850, 'classifier': 150, 'joint': 0},
        repeated=('dense', 'static_8_16', 'classpruning'),
    )


def _edsr(width: int, blocks: int, narrow: tuple[int, ...]) -> Table:
    return Table(
        name=f'edsr_x2_{width}',
        title=f'EDSR ×2, {width} features, {blocks} blocks',
        task=SUPER_RESOLUTION_X2,
        base={
            'type': 'EDSR',
            'num_in_ch': 3,
            'num_out_ch': 3,
            'num_feat': width,
            'num_block': blocks,
            'upscale': 2,
        },
        narrow=narrow,
        first=Training(6000, 5e-4),
        further=Training(1500, 1e-4),
        stages={'supernet': 1400, 'classifier': 100, 'joint': 0},
        repeated=('dense', 'static_8_16', 'classpruning'),
        variants=width == 32,
    )


# Narrower dense networks have about 25 and 50 % of the MACs, which go with the square of the width.
TABLES = (
    _dncnn(32, (16, 22)),
    _edsr(32, 8, (16, 22)),
)
