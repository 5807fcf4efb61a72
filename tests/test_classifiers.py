"""The classifiers: what their scores may and must not do."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.archs import build_network

from basicsr_classpruning.archs.classifier_arch import BandClassifier
from basicsr_classpruning.losses.classpruning_loss import ErrorRatioLoss
from basicsr_classpruning.pruning.classifier import ErrorMaps, fit_classifier
from basicsr_classpruning.routing.router import Router
from basicsr_classpruning.sizes import SizeRequirements
from basicsr_classpruning.sparsity.macs import count_by_module

KINDS = ('BandClassifier', 'DifficultyClassifier', 'EdgeDifficulty')
NEVER_FALLING = ('DifficultyClassifier', 'EdgeDifficulty')


def scores_of(kind: str, images: torch.Tensor, classes: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return build_network({'type': kind, 'num_in_ch': images.shape[1], 'num_classes': classes}).eval()(images)


def band_classifier(channels: int, classes: int = 3) -> BandClassifier:
    """One whose every weight says something; a new one predicts the same everywhere."""
    torch.manual_seed(0)
    classifier = BandClassifier(channels, classes)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return classifier.eval()


@pytest.mark.parametrize('kind', NEVER_FALLING)
@pytest.mark.parametrize('channels', [1, 3])
def test_a_denser_candidate_never_scores_below_a_sparser_one(kind, channels):
    scores = scores_of(kind, torch.rand(4, channels, 24, 40), classes=4)
    assert scores.shape == (4, 4)
    assert (scores.diff(dim=1) >= 0).all()
    assert (scores < 0).all()


@pytest.mark.parametrize('kind', KINDS)
def test_each_image_is_scored_by_itself(kind):
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(scores_of(kind, images)[1:2], scores_of(kind, images[1:2]))


def test_edges_make_an_image_difficult():
    flat = torch.full((1, 3, 16, 16), 0.5)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)  # smooth: only its border has a second difference
    rough = torch.rand(1, 3, 16, 16)
    cheap = [1 + float(scores_of('EdgeDifficulty', image)[0, 0]) for image in (flat, ramp, rough)]
    assert cheap[0] == pytest.approx(0, abs=1e-6)
    assert cheap[0] > cheap[1] > 10 * cheap[2]
    middle = 1 + scores_of('EdgeDifficulty', rough)[0]
    assert middle[1] == pytest.approx(float(middle[0]) / 4)  # half of the candidates away from the densest


@torch.no_grad()
@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (2, 31), (8, 8), (40, 23)])
def test_parts_of_images_of_any_size_are_scored_and_their_means_are_the_images(channels, size):
    classifier, images = band_classifier(channels), torch.rand(2, channels, *size)
    scores = classifier.score_map(images)
    assert scores.shape == (2, 3, *(-(-length // 8) for length in size))
    assert (scores < 0).all()
    torch.testing.assert_close(classifier(images), scores.mean((2, 3)))


def amplitudes(classifier: BandClassifier, images: torch.Tensor) -> torch.Tensor:
    """Mean square roots ``(B, F)`` of the energies in bands."""
    logs = classifier.energies(images)[:, :-1]
    return (logs - 3.0).exp().square().mean((2, 3)).sqrt()


@torch.no_grad()
@pytest.mark.parametrize('sigma', [0.002, 0.01, 0.1])
def test_white_noise_has_its_own_strength_in_every_band(sigma):
    images = 0.5 + sigma * torch.randn(4, 3, 128, 128)
    found = amplitudes(BandClassifier(3, 3), images)
    energies, evenness = found[:, [0, 1, 2, 3, 4, 5, 6, 7, 12, 13]], found[:, 8:12]
    torch.testing.assert_close(energies, torch.full_like(energies, sigma), rtol=0.1, atol=0)
    # The mean absolute value of a normal distribution.
    torch.testing.assert_close(evenness, torch.full_like(evenness, sigma * math.sqrt(2 / math.pi)), rtol=0.1, atol=0)


@torch.no_grad()
def test_grey_details_are_all_in_luma():
    luma = amplitudes(BandClassifier(3, 3), torch.rand(1, 1, 64, 64).expand(-1, 3, -1, -1))[0]
    assert luma[:4].min() > 1000 * luma[4:8].max()


@torch.no_grad()
@pytest.mark.parametrize('size', [(65, 65), (33, 8), (9, 71)])
def test_incomplete_parts_look_as_noisy_as_whole_ones(size):
    images = 0.5 + 0.1 * torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(0))
    logs = BandClassifier(3, 3).energies(images)[:, :8].mean((0, 1))  # the mean over bands tells by far enough
    assert float(logs.max() - logs.min()) < 0.7


def test_a_colour_image_is_judged_within_the_work_allowed():
    for width, most in ((32, 280), (16, 230)):
        macs = count_by_module(BandClassifier(3, 6, width), (3, 64, 64))[''] / 64**2
        assert macs < most


def noisy(sigmas: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(len(sigmas), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 0.5 + sigmas[:, None, None, None] * noise


def errors_left(sigmas: torch.Tensor) -> torch.Tensor:
    """Errors ``(B, 3)``: of the noisy image itself, and of networks that remove noise and leave errors of their own."""
    left = torch.stack([torch.ones_like(sigmas), 0.3 + 0 * sigmas, 0.27 + 0 * sigmas], 1) * sigmas.square()[:, None]
    return left + torch.tensor([0.0, 2e-5, 2e-5])


def test_errors_over_four_decades_are_learnt_and_the_bypass_where_it_leaves_less():
    sigmas = torch.logspace(-3, -1, 128)
    maps = ErrorMaps(noisy(sigmas, 0), errors_left(sigmas)[:, :, None, None].expand(-1, -1, 4, 4))
    torch.manual_seed(0)
    classifier = BandClassifier(3, 3)
    fit_classifier(Router(classifier, torch.zeros(())), maps, steps=500, seed=0)
    asked = torch.tensor([0.0012, 0.003, 0.01, 0.03, 0.08])
    with torch.no_grad():
        found = -classifier.eval()(noisy(asked, 1)) * ErrorRatioLoss.unit
    wanted = errors_left(asked)
    torch.testing.assert_close(found.log(), wanted.log(), rtol=0, atol=0.4)
    assert ((found[:, 0] < found[:, 1]) == (wanted[:, 0] < wanted[:, 1])).all()
    # The two networks differ by a tenth at most: far less than their errors are known.
    torch.testing.assert_close(found[:, 1] / found[:, 2], wanted[:, 1] / wanted[:, 2], rtol=0.03, atol=0)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_classifier_becomes_an_onnx_graph_of_any_size(channels):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from basicsr_classpruning.export.onnx import TOLERANCE, convert

    graph = convert(band_classifier(channels), channels, SizeRequirements(1, 1))
    assert graph.any_batch
    assert graph.difference <= TOLERANCE
