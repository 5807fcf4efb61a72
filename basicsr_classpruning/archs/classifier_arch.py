"""The lightweight classifier that predicts how hard an image is to restore."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_LOG = 12.0  # of a predicted error: e^12 times the mean is beyond anything measured
_HIGH_PASS = ((0.0, -0.25, 0.0), (-0.25, 1.0, -0.25), (0.0, -0.25, 0.0))


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts, for each candidate, how much worse than the dearest it restores an image.

    The excess error of an image is the mean over its parts, so it is predicted for parts of 8×8 pixels and averaged;
    a training picture thus teaches hundreds of values instead of one. Five convolutions, three with stride 2, whose
    last sees the mean features of the whole image too (noise and compression are the same everywhere): at the default
    width about 800 MACs a pixel, 0.06 % of a 64-feature, 16-block EDSR. Images of any size, down to 1×1.

    A user's own classifier is registered in ``ARCH_REGISTRY`` and takes ``num_in_ch`` and ``num_classes`` too.

    Args:
        num_in_ch: channels of the images.
        num_classes: number of candidates.
        num_feat: features of the later layers.
    """

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
        self.head = nn.Conv2d(num_feat, num_classes - 1, 1) if num_classes > 1 else None

    def log_steps(self, x: Tensor) -> Tensor:
        """Log of what each next cheaper candidate adds to the error, for each part of each image.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, K − 1, ⌈H / 8⌉, ⌈W / 8⌉)``, at most 12, from the cheapest candidate's step to the dearest's but one,
            in units of the mean excess error of the cheapest candidate.
        """
        # Centred, and spread to about unit variance, without which the first steps are lost on the mean colour.
        features = self.features((x - 0.5) * 4)
        surroundings = self.surroundings(features.mean((2, 3)))[:, :, None, None]
        return self.head(functional.leaky_relu(features + surroundings, 0.1)).clamp(max=_LARGEST_LOG)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            Scores ``(B, K)``, at most 0 and 0 for the dearest candidate: minus the predicted excess error. Scores of
            one image never fall from a cheaper candidate to a dearer one.
        """
        return x.new_zeros(len(x), 1) if self.head is None else self.scores_of(self.log_steps(x))

    @staticmethod
    def scores_of(log_steps: Tensor) -> Tensor:
        """Scores ``(B, K)`` from what ``log_steps`` returns."""
        steps = log_steps.exp().mean((2, 3))
        # Summed from the dearest candidate down: each step is what the next cheaper one costs in quality.
        excess = torch.cumsum(steps.flip(1), dim=1).flip(1)
        return functional.pad(-excess, (0, 1))


@ARCH_REGISTRY.register()
class EdgeDifficulty(nn.Module):
    """A difficulty measure that needs no training: the strength of an image's details.

    Scores fall with the mean absolute Laplacian, in proportion to what a candidate leaves out. It ranks tiles for a
    budget; it knows nothing of the network, and a trained classifier does better.

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
        """Takes images ``(B, C, H, W)`` in [0, 1]; returns scores ``(B, K)``, at most 0, the dearest candidate's 0."""
        detail = functional.conv2d(functional.pad(x, (1, 1, 1, 1), 'replicate'), self.kernel, groups=self.num_in_ch)
        return -detail.abs().mean((1, 2, 3))[:, None] * self.share
