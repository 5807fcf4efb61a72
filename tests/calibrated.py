"""Small networks of every kind whose candidates all differ, as after calibration."""

from __future__ import annotations

import torch

from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.sparsity import sparse_layers

CANDIDATES = ['1:4', '2:4', '4:4']
NETWORKS = {
    'EDSR': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 1, 'upscale': 2},
    'MSRResNet': {'num_feat': 16, 'num_block': 1, 'upscale': 4},
    'SRVGGNetCompact': {'num_feat': 16, 'num_conv': 2, 'upscale': 4},
    'DnCNN': {'num_feat': 16, 'num_conv': 8},  # spandrel knows no shorter ones
    'NAFNet': {'width': 8, 'middle_blk_num': 1, 'enc_blk_nums': [1, 1], 'dec_blk_nums': [1, 1]},
    'RCAN': {
        'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4,
        'upscale': 2,
    },
    'RRDBNet': {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 1, 'num_grow_ch': 8, 'scale': 2},
    'RIDNet': {'in_channels': 3, 'mid_channels': 16, 'out_channels': 3, 'num_block': 1},
    'ECBSR': {
        'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': True, 'act_type': 'prelu',
        'scale': 2,
    },
    'SwinIR': {
        'upscale': 2, 'img_size': 64, 'window_size': 4, 'img_range': 1.0, 'depths': [2], 'embed_dim': 8,
        'num_heads': [2], 'mlp_ratio': 2, 'upsampler': 'pixelshuffledirect',
    },
}  # fmt: skip


def build(name: str, **changes) -> ClassPruning:
    """A network whose candidates all differ, in weights and biases, as after calibration."""
    torch.manual_seed(0)
    net = ClassPruning({'type': name, **NETWORKS[name], **changes}, CANDIDATES, weights='own')
    with torch.no_grad():
        for parameter in net.base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _, layer in sparse_layers(net.base):
            layer.reset_candidates()
            for own in (*layer.weights, *layer.biases):
                own.mul_(1 + 0.1 * torch.rand_like(own))
    return net.eval()


def images(channels: int, batch: int = 2, height: int = 24, width: int = 16) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))
