"""Reads ESRGAN's network under all the names that its parameters have had.

The same network was published as ESRGAN (``model.1.sub.0.RDB1.conv1.0.weight``), as RealSR and BSRGAN
(``RRDB_trunk.0.RDB1.conv1.weight``) and in BasicSR (``body.0.rdb1.conv1.weight``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from basicsr_classpruning.archs.adapters import Adapter, register_adapter

_LAYERS = {
    **{'model.0': 'conv_first', 'model.3': 'conv_up1', 'model.6': 'conv_up2'},
    **{'model.8': 'conv_hr', 'model.10': 'conv_last'},
    **{'trunk_conv': 'conv_body', 'upconv1': 'conv_up1', 'upconv2': 'conv_up2', 'HRconv': 'conv_hr'},
}
_DENSE_LAYER = re.compile(r'(?:model\.1\.sub|RRDB_trunk)\.(\d+)\.RDB([123])\.conv([1-5])(?:\.0)?')
_TRUNK = re.compile(r'model\.1\.sub\.\d+')
_HEAD_AND_TAIL = ('conv_first', 'conv_body', 'conv_up1', 'conv_up2', 'conv_hr', 'conv_last')


@register_adapter('RRDBNet')
class RRDBNetAdapter(Adapter):
    """Gives parameters BasicSR's names."""

    def fold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_basicsr_name(key): value for key, value in params.items()}

    def recognise(self, params: Mapping[str, Tensor]) -> dict[str, Any] | None:
        named = self.fold_params({}, params)
        blocks = {key.split('.')[1] for key in named if key.startswith('body.')}
        dense = [f'body.{block}.rdb{k}.conv{n}' for block in blocks for k in (1, 2, 3) for n in range(1, 6)]
        layers = {f'{layer}.{part}' for layer in (*_HEAD_AND_TAIL, *dense) for part in ('weight', 'bias')}
        if (
            '0' not in blocks
            or named.keys() != layers
            or any(named[f'{layer}.weight'].ndim != 4 for layer in _HEAD_AND_TAIL)
        ):
            return None
        first, last = named['conv_first.weight'], named['conv_last.weight']
        # A network that enlarges by 2 or 1 folds the image into 4 or 16 times the channels, and enlarges by 4.
        scale = {(4, 0): 2, (16, 0): 1}.get(divmod(first.shape[1], last.shape[0]), 4)
        return {
            'type': 'RRDBNet',
            'num_in_ch': first.shape[1] // (4 // scale) ** 2,
            'num_out_ch': last.shape[0],
            'scale': scale,
            'num_feat': first.shape[0],
            'num_block': len(blocks),
            'num_grow_ch': named['body.0.rdb1.conv1.weight'].shape[0],
        }


def _basicsr_name(key: str) -> str:
    layer, _, part = key.rpartition('.')
    dense = _DENSE_LAYER.fullmatch(layer)
    if dense:
        return f'body.{dense[1]}.rdb{dense[2]}.conv{dense[3]}.{part}'
    if _TRUNK.fullmatch(layer):
        return f'conv_body.{part}'
    return f'{_LAYERS.get(layer, layer)}.{part}'
