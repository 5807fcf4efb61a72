"""The lightweight classifier that predicts how hard an image is to restore."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts, for each candidate, how much worse than the best it restores an image.

    Four convolutions, three of them with stride 2, then mean and standard deviation over the image: at the default
    width about 700 MACs a pixel, 0.05 % of a 64-feature, 16-block EDSR. It takes images of any size, down to 1×1.

    A user's own classifier is registered in ``ARCH_REGISTRY`` and takes ``num_in_ch`` and ``num_classes`` too.

    Args:
        num_in_ch: channels of the images.
        num_classes: number of candidates.
        num_feat: features of the later layers.
    """

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
        self.head = nn.Sequential(
            nn.Linear(2 * num_feat, 2 * num_feat), nn.LeakyReLU(0.1, inplace=True), nn.Linear(2 * num_feat, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            Scores ``(B, K)``, at most 0: minus the predicted excess error of each candidate, in units of the mean
            excess error of the cheapest one. Scores of one image never fall from a cheaper candidate to a dearer one.
        """
        # Centred, and spread to about unit variance, without which the first steps are lost on the mean colour.
        features = self.features((x - 0.5) * 4)
        mean = features.mean((2, 3))
        deviation = (features - mean[:, :, None, None]).square().mean((2, 3)).add(1e-6).sqrt()
        steps = torch.exp(self.head(torch.cat((mean, deviation), dim=1)).clamp(max=10))
        # Summed from the dearest candidate down, each step is what choosing the next cheaper one costs in quality.
        excess = torch.cumsum(steps.flip(1), dim=1).flip(1)
        return excess[:, -1:] - excess
