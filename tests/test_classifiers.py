"""The classifiers: what their scores may and must not do."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

KINDS = ('DifficultyClassifier', 'EdgeDifficulty')


def scores_of(kind: str, images: torch.Tensor, classes: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return build_network({'type': kind, 'num_in_ch': images.shape[1], 'num_classes': classes}).eval()(images)


@pytest.mark.parametrize('kind', KINDS)
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
