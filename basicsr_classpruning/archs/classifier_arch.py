"""The lightweight classifier that predicts how hard an image is to restore."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_LOG = 12.0  # of a predicted error: e^12 times the unit is beyond anything measured
_TYPICAL_STEP = 0.1
_HIGH_PASS = ((0.0, -0.25, 0.0), (-0.25, 1.0, -0.25), (0.0, -0.25, 0.0))


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts the squared error that each candidate leaves in an image.

    The error of an image is the mean over its parts, so it is predicted for parts of 8×8 pixels and averaged; a
    training picture thus teaches hundreds of values instead of one. Five convolutions, three with stride 2, whose
    last sees the mean features of the whole image too (noise and compression are the same everywhere): at the default
    width about 700 MACs a pixel, 0.06 % of a 64-feature, 16-block EDSR. Images of any size, down to 1×1.

    A user's own classifier is registered in ``ARCH_REGISTRY`` and takes ``num_in_ch`` and ``num_classes`` too; it may
    leave out ``score_map``.

    Args:
        num_in_ch: channels of the images.
        num_classes: number of candidates.
        num_feat: features of the later layers.
    """

    typical: Tensor
    stride = 8
    """Side of the parts of an image, in pixels."""

    def __init__(self, num_in_ch: int, num_classes: int, num_feat: int = 32) -> None:
        super().__init__()
        half = max(num_feat // 2, 1)
        self.features = nn.Sequential(
            nn.Conv2d(num_in_ch, half, 3, 2, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(half, num_feat, 3, 2, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 2, 1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            nn.LeakyReLU(0.1, inplace=True),
        )
        self.surroundings = nn.Linear(num_feat, num_feat)
        self.head = nn.Conv2d(num_feat, num_classes, 1)
        # Pruning adds a small part of the error that is there anyway: so it begins, and its steps keep this measure.
        self.register_buffer('typical', torch.tensor([_TYPICAL_STEP] * (num_classes - 1) + [1.0])[:, None, None], False)

    def score_map(self, x: Tensor) -> Tensor:
        """Scores of the parts of images.

        The last layer gives logarithms: of what each candidate adds to the error of the next dearer one, in tenths of
        the unit, and of the dearest one's error. Errors are sums of these from the dearest down, so they never rise
        with the cost.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, K, ⌈H / 8⌉, ⌈W / 8⌉)``: minus the predicted error, in the unit of ``DifficultyLoss``.
        """
        # Centred, and spread to about unit variance, without which the first steps are lost on the mean colour.
        features = self.features((x - 0.5) * 4)
        surroundings = self.surroundings(features.mean((2, 3)))[:, :, None, None]
        logs = self.head(functional.leaky_relu(features + surroundings, 0.1)).clamp(max=_LARGEST_LOG)
        steps = logs.exp() * self.typical
        return -torch.cumsum(steps.flip(1), dim=1).flip(1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            Scores ``(B, K)`` below 0: minus the predicted squared error. Scores of one image never fall from a cheaper
            candidate to a dearer one.
        """
        return self.score_map(x).mean((2, 3))


@ARCH_REGISTRY.register()
class EdgeDifficulty(nn.Module):
    """A difficulty measure that needs no training: the strength of an image's details.

    Scores fall with the mean absolute Laplacian, in proportion to what a candidate leaves out; the dearest candidate's
    error counts as the same everywhere. It ranks tiles for a budget; it knows nothing of the network, and a trained
    classifier does better.

    Args:
        num_in_ch: channels of the images.
        num_classes: number of candidates.
    """

    kernel: Tensor
    share: Tensor

    def __init__(self, num_in_ch: int, num_classes: int) -> None:
        super().__init__()
        self.num_in_ch = num_in_ch
        kernel = torch.tensor(_HIGH_PASS).expand(num_in_ch, 1, 3, 3).contiguous()
        self.register_buffer('kernel', kernel)
        left_out = torch.arange(num_classes - 1, -1, -1.0) / max(num_classes - 1, 1)
        # Convex: the first weights left out matter least, so that middle candidates get their share too.
        self.register_buffer('share', left_out.square())

    def forward(self, x: Tensor) -> Tensor:
        """Takes images ``(B, C, H, W)`` in [0, 1]; returns scores ``(B, K)``, the dearest candidate's -1."""
        detail = functional.conv2d(functional.pad(x, (1, 1, 1, 1), 'replicate'), self.kernel, groups=self.num_in_ch)
        return -1 - detail.abs().mean((1, 2, 3))[:, None] * self.share
