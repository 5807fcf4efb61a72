"""The lightweight classifiers that predict how hard an image is to restore."""

from __future__ import annotations

import math

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

_LARGEST_LOG = 12.0  # of a predicted error: e^12 times the unit is beyond anything measured
_TYPICAL_STEP = 0.1
_SMALLEST_LOG = -15.0  # 95 dB, where the unit is 30 dB
_BLOCK = 4  # side of the blocks that are transformed, in pixels
_BANDS = 4  # of frequency: 1, 2, 3, and 4 or more half waves a block
_LEAST_ENERGY = 1e-7  # a tenth of what rounding to 8 bits leaves
_LOG_SHIFT = 3.0  # centres the logarithms of what photographs have
_RATIO_SCALE = 0.1  # logarithms of ratios are small beside those of errors, and are learnt as slowly
_TYPICAL_RATIO = 0.05  # logarithm of what a sparser candidate leaves, as it begins
_SHARPNESS = 4.0  # of the minimum over the parts of an image
_HIGH_PASS = ((0.0, -0.25, 0.0), (-0.25, 1.0, -0.25), (0.0, -0.25, 0.0))


@ARCH_REGISTRY.register()
class DifficultyClassifier(nn.Module):
    """Predicts the squared error that each candidate leaves in an image.

    The error of an image is the mean over its parts, so it is predicted for parts of 8×8 pixels and averaged; a
    training image thus teaches hundreds of values instead of one. Five convolutions, three with stride 2, whose
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

        The last layer gives logarithms: of what each candidate adds to the error of the next denser one, in tenths of
        the unit, and of the densest one's error. Errors are sums of these from the densest down, so they never rise
        with the cost.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, K, ⌈H / 8⌉, ⌈W / 8⌉)``: minus the predicted error, in the unit of ``ErrorRatioLoss``.
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
            Scores ``(B, K)`` below 0: minus the predicted squared error. Scores of one image never fall from a sparser
            candidate to a denser one.
        """
        return self.score_map(x).mean((2, 3))


@ARCH_REGISTRY.register()
class BandClassifier(nn.Module):
    """Predicts the squared error that each candidate leaves, from how much an image has in bands of frequency.

    Errors span four decades, and so does what they depend on: noise and details. An orthonormal cosine transform over
    the channels and 4×4 pixels leaves white noise with the same energy in every coefficient, while details of
    photographs lie in few of them (low frequencies, luma). So the image is seen as logarithms of the energies of bands
    in parts of 8×8 pixels, which say strength of noise and of details however weak or strong they are. Two
    convolutions of parts and a linear map of the same logarithms give the logarithm of the densest candidate's error,
    and of each other one's ratio to the next denser one's, of any sign: a sparser candidate, above all the bypass, may
    leave less. They see the mean of the whole image too, and a soft minimum, which is what its smoothest parts have:
    the noise.

    At the default width about 260 MACs a pixel, 0.13 % of the smallest EDSR of the zoo; a width of 16 takes
    about 215. Images of any size, down to 1×1.

    Args:
        num_in_ch: channels of the images.
        num_classes: number of candidates.
        num_feat: features of the hidden layers.
    """

    waves: Tensor
    coarse: Tensor
    bands: Tensor
    stride = 8
    """Side of the parts of an image, in pixels."""

    def __init__(self, num_in_ch: int, num_classes: int, num_feat: int = 32) -> None:
        super().__init__()
        cosines = _cosines(_BLOCK)
        # One convolution of all channels: separate ones of colours and pixels have fewer MACs, and take longer.
        waves = torch.einsum('dc,ui,vj->duvcij', _cosines(num_in_ch), cosines, cosines)
        steps = torch.einsum('ui,vj->uvij', _cosines(2), _cosines(2)).reshape(-1, 1, 2, 2)[1:]
        self.num_in_ch = num_in_ch
        constants = {
            'waves': waves.reshape(-1, num_in_ch, _BLOCK, _BLOCK),
            'coarse': steps.repeat(num_in_ch, 1, 1, 1),
            'bands': _bands(num_in_ch)[:, :, None, None],
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        kinds = min(num_in_ch, 2)
        seen = len(self.bands) + _BANDS + kinds + 1
        self.local = nn.Conv2d(seen, num_feat, 3, 1, 1, padding_mode='replicate')
        self.surroundings = nn.Linear(2 * seen, num_feat)
        self.mixed = nn.Conv2d(num_feat, num_feat, 1)
        self.head = nn.Conv2d(num_feat, num_classes, 1)
        self.direct = nn.Conv2d(seen, num_classes, 1, bias=False)
        self.direct_surroundings = nn.Linear(2 * seen, num_classes)
        # It begins with the same error everywhere, and learns first what is linear in the logarithms.
        for layer in (self.head, self.direct, self.direct_surroundings):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def energies(self, x: Tensor) -> Tensor:
        """Half logarithms of the energies in bands, and the brightness, of the parts of images.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, F, ⌈H / 8⌉, ⌈W / 8⌉)``; incomplete parts at the border are completed by the image's reflection.
        """
        waves = functional.conv2d(_whole_parts(x.float() - 0.5, self.stride), self.waves, stride=_BLOCK)
        squares = functional.avg_pool2d(functional.conv2d(waves.square(), self.bands), 2)
        # Beside the energy, how evenly it is spread: noise is even, edges are not.
        luma = waves[:, : _BLOCK**2].abs()
        evenness = functional.avg_pool2d(functional.conv2d(luma, self.bands[:_BANDS, : _BLOCK**2]), 2).square()
        mean = waves[:, :: _BLOCK**2]  # of each channel in each block
        steps = functional.conv2d(mean, self.coarse, stride=2, groups=self.num_in_ch).square()
        kinds = [steps[:, :3].mean(1, keepdim=True)]
        if self.num_in_ch > 1:
            kinds.append(steps[:, 3:].mean(1, keepdim=True))
        logs = (torch.cat([squares, evenness, *kinds], dim=1) + _LEAST_ENERGY).log() / 2 + _LOG_SHIFT
        brightness = functional.avg_pool2d(mean[:, :1], 2) / (_BLOCK * self.num_in_ch**0.5) * 2
        return torch.cat([logs, brightness], dim=1)

    def score_map(self, x: Tensor) -> Tensor:
        """Scores of the parts of images.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            ``(B, K, ⌈H / 8⌉, ⌈W / 8⌉)`` below 0: minus the predicted error, in the unit of ``ErrorRatioLoss``.
        """
        seen = self.energies(x)
        soft_minimum = -(-_SHARPNESS * seen).exp().mean((2, 3)).log() / _SHARPNESS
        whole = torch.cat([seen.mean((2, 3)), soft_minimum], dim=1)
        features = functional.leaky_relu(self.local(seen) + self.surroundings(whole)[:, :, None, None], 0.1)
        features = functional.leaky_relu(self.mixed(features), 0.1)
        found = 2 * self.head(features) + self.direct(seen) + self.direct_surroundings(whole)[:, :, None, None]
        found = found.float()
        ratios = _RATIO_SCALE * found[:, :-1] + _TYPICAL_RATIO
        logs = torch.cat([ratios, found[:, -1:]], dim=1).flip(1).cumsum(1).flip(1)
        return -logs.clamp(_SMALLEST_LOG, _LARGEST_LOG).exp()

    def forward(self, x: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].

        Returns:
            Scores ``(B, K)`` below 0: minus the predicted squared error.
        """
        return self.score_map(x).mean((2, 3))


def _cosines(size: int) -> Tensor:
    """Orthonormal basis ``(size, size)`` of the cosine transform; the first row is the mean's."""
    waves = torch.arange(size)[:, None] * (torch.arange(size) + 0.5) * (math.pi / size)
    return functional.normalize(waves.cos(), dim=1)


def _bands(channels: int) -> Tensor:
    """Shares ``(bands, channels · 16)`` of the coefficients in the energy of each band: of luma, then of the rest."""
    frequency = torch.arange(_BLOCK)
    band = (frequency[:, None] + frequency).clamp(max=_BANDS).flatten()  # 0 is the mean, which is no detail
    members = (band == torch.arange(1, _BANDS + 1)[:, None]).float()
    members /= members.sum(dim=1, keepdim=True)
    luma = torch.cat([members, torch.zeros_like(members).repeat(1, channels - 1)], dim=1)
    if channels == 1:
        return luma
    rest = torch.cat([torch.zeros_like(members), members.repeat(1, channels - 1) / (channels - 1)], dim=1)
    return torch.cat([luma, rest])


def _whole_parts(x: Tensor, side: int) -> Tensor:
    """Continues images by their reflection to multiples of ``side``: a constant would look like a place without
    noise."""
    for dim in (2, 3):
        length = x.shape[dim]
        wanted = (length + side - 1) // side * side
        if wanted == length and not torch.jit.is_tracing():  # a trace is for all lengths
            continue
        place = torch.arange(wanted, device=x.device) % (2 * length)
        x = x.index_select(dim, torch.minimum(place, 2 * length - 1 - place))
    return x


@ARCH_REGISTRY.register()
class EdgeDifficulty(nn.Module):
    """A difficulty measure that needs no training: the strength of an image's details.

    Scores fall with the mean absolute Laplacian, in proportion to what a candidate leaves out; the densest candidate's
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
        """Takes images ``(B, C, H, W)`` in [0, 1]; returns scores ``(B, K)``, the densest candidate's -1."""
        detail = functional.conv2d(functional.pad(x, (1, 1, 1, 1), 'replicate'), self.kernel, groups=self.num_in_ch)
        return -1 - detail.abs().mean((1, 2, 3))[:, None] * self.share
