"""Which of BasicSR's registered networks ClassPruning cannot wrap, and why."""

from __future__ import annotations

_VIDEO = 'it restores a sequence of frames; ClassPruning wraps networks that restore single images'
_GENERATOR = 'it makes faces with a GAN and routes no single image; ClassPruning wraps plain restoration networks'
_JUDGE = 'it judges images and restores none'

_REFUSED = {
    **dict.fromkeys(
        ('BasicVSR', 'BasicVSRPlusPlus', 'DUF', 'EDVR', 'IconVSR', 'TOFlow'),
        _VIDEO,
    ),
    'SpyNet': 'it estimates the motion between two frames and restores no image',
    **dict.fromkeys(('DFDNet', 'HiFaceGAN', 'SPADEGenerator', 'StyleGAN2Generator'), _GENERATOR),
    **dict.fromkeys(
        ('HiFaceGANDiscriminator', 'StyleGAN2Discriminator', 'UNetDiscriminatorSN', 'VGGStyleDiscriminator'),
        _JUDGE,
    ),
    'VGGFeatureExtractor': 'it extracts features for a loss and restores no image',
    'InceptionV3': 'it extracts features for a metric and restores no image',
    'ClassPruning': 'a ClassPruning network cannot be pruned a second time; name its base network',
}


def refusal(name: str) -> str | None:
    """Why the network registered as ``name`` cannot be a base network, or None where nothing speaks against it."""
    return _REFUSED.get(name.removesuffix('_basicsr'))  # BasicSR's registry knows some of its own by both names
