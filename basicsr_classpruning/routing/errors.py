"""Errors of candidates in the unit that routing compares: relative to what the reference candidate leaves in the image.

PSNR counts an image's error relative to itself, so what a budget gains in one image and in another is compared in this
unit, and a price on cost means the same in all images. The measure is the reference candidate's error, the densest but
one: the densest one's is 0 where the dense network's outputs are the truth.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

LEAST_ERROR = 1e-9
"""What an image's error counts as at least when others are divided by it: in the unit of the classifier's errors, or of
squared differences of images in [0, 1], where it is 90 dB, beyond what 8 bits can tell."""

_Errors = TypeVar('_Errors', np.ndarray, Tensor)


def reference_errors(errors: _Errors) -> _Errors:
    """Errors ``(B, …)`` of the reference candidate, the densest but one or the only one, from all ``(B, K, …)``."""
    return errors[:, -2:][:, 0]


def relative_errors(errors: _Errors) -> _Errors:
    """What each candidate adds to the densest one's error in each image, relative to the image's reference error.

    Args:
        errors: squared errors ``(B, K)`` of whole images, measured or predicted.

    Returns:
        ``(B, K)``, 0 for the densest candidate; 0.1 is about 0.4 dB.
    """
    return (errors - errors[:, -1:]) / reference_errors(errors)[:, None].clip(LEAST_ERROR)


def errors_in_image(errors: np.ndarray) -> np.ndarray:
    """Errors of the parts of one image, relative to the mean reference error of them all.

    Args:
        errors: squared errors ``(T, K)`` of parts (tiles) of one size.
    """
    return errors / max(reference_errors(errors).mean(), LEAST_ERROR)


_FAITH = 1e-3  # all MACs of a tile are expected to lower its error by this at least: 0.004 dB
_TIE = 1e-3  # of the MACs, for which one step of the ladder counts where it costs none


def expected_errors(predicted: np.ndarray, costs: np.ndarray, runs_base: np.ndarray) -> np.ndarray:
    """Predicted errors as a budget may rely on them: a denser subnetwork leaves a little less error than a sparser one.

    Where a classifier says otherwise it is mistaken on average, and a budget would be left unspent for it. Of two that
    cost the same, the later one of the ladder is the better. Of what runs nothing of the base network, such as a
    bypass, the classifier is believed.

    Args:
        predicted: relative errors ``(T, K)`` of parts of one size, see ``errors_in_image``.
        costs: ``(K,)``, as fractions of the dense network's.
        runs_base: ``(K,)``: which candidates are subnetworks of the base network, sparsest first.
    """
    expected = predicted.copy()
    own = np.flatnonzero(runs_base)[::-1]
    lacking = (costs.max() - costs[own]).clip(0) + _TIE * np.arange(len(own))
    expected[:, own] = np.maximum.accumulate(predicted[:, own], axis=1) + _FAITH * lacking
    return expected
