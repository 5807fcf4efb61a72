"""Degradations: against BasicSR's and OpenCV's own, part against whole, strengths, and the text and option forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from basicsr.utils.matlab_functions import imresize

from basicsr_classpruning.data.bicubic import bicubic_shrink
from basicsr_classpruning.data.degradations import (
    BicubicDownscaling,
    Degradation,
    GaussianNoise,
    JpegCompression,
    as_float,
    as_uint8,
    picture_rng,
    register_degradation,
)
from basicsr_classpruning.data.degradations.photograph_noise import PhotographNoise
from basicsr_classpruning.data.region import Region
from basicsr_classpruning.errors import UsageError

BUTTERFLY = 33.476961097217625


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture with edges, gradients and texture, uint8."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / np.array([3, 7, 11])[:channels])
    return as_uint8((0.5 + 0.4 * waves + 0.1 * rng.standard_normal(waves.shape)).astype(np.float32))


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@pytest.mark.parametrize('size', [(48, 72), (41, 50)])
def test_bicubic_weights_are_basicsrs(scale, size):
    picture = as_float(photograph(*size))
    np.testing.assert_allclose(bicubic_shrink(picture, scale), imresize(picture, 1 / scale), atol=1e-6)


def test_bicubic_takes_pictures_too_small_for_basicsr():
    constant = np.full((3, 5, 1), 0.25, np.float32)
    np.testing.assert_allclose(bicubic_shrink(constant, 4), np.full((1, 2, 1), 0.25), atol=1e-6)


def test_bicubic_rounds_to_eight_bits():
    low = BicubicDownscaling(2).degrade(photograph(20, 20), np.random.default_rng(0))
    np.testing.assert_array_equal(low, as_float(as_uint8(low)))
    assert low.min() >= 0
    assert low.max() <= 1


def test_noise_has_the_drawn_strength_and_is_not_clipped():
    clean = np.zeros((200, 200, 3), np.uint8)
    noisy = GaussianNoise(25, 25).degrade(clean, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    assert noisy.std() * 255 == pytest.approx(25, rel=0.01)
    assert noisy.mean() * 255 == pytest.approx(0, abs=0.3)
    assert noisy.min() < 0


def test_noise_strengths_fill_their_range():
    noise, rng = GaussianNoise(10, 30), np.random.default_rng(0)
    clean = np.full((40, 40, 1), 128, np.uint8)
    strengths = [255 * (noise.degrade(clean, rng) - as_float(clean)).std() for _ in range(200)]
    assert 9 < min(strengths) < 11.5
    assert 28.5 < max(strengths) < 32
    assert np.mean(strengths) == pytest.approx(20, abs=1.5)


@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_is_what_a_file_of_that_quality_holds(channels, tmp_path):
    clean = photograph(40, 56, channels)
    path = str(tmp_path / 'picture.jpg')
    cv2.imwrite(path, clean[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])
    expected = cv2.imread(path, cv2.IMREAD_UNCHANGED).reshape(clean.shape)[..., ::-1]
    degraded = JpegCompression(30, 30).degrade(clean, np.random.default_rng(0))
    np.testing.assert_array_equal(degraded, as_float(expected))
    np.testing.assert_array_equal(degraded, JpegCompression(30, 30).degrade(as_float(clean), np.random.default_rng(0)))


def test_jpeg_draws_the_ends_of_its_range_too():
    jpeg, rng, clean = JpegCompression(10, 12), np.random.default_rng(0), photograph(32, 32)
    drawn = {jpeg.degrade(clean, rng).tobytes() for _ in range(50)}
    fixed = {JpegCompression(q, q).degrade(clean, rng).tobytes() for q in (10, 11, 12)}
    assert drawn == fixed


@pytest.mark.parametrize('text', ['bicubic2', 'bicubic3', 'jpeg20'])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_degraded_part_equals_that_part_of_the_degraded_picture(text, channels):
    degradation = Degradation.parse(text)
    picture = photograph(96, 132, channels)
    whole = degradation.degrade(picture, np.random.default_rng(0))
    step = degradation.scale
    for top, left in [(0, 0), (30, 42), (96 - 24, 132 - 24), (6 * step, 7 * step), (0, 132 - 24)]:
        part = Region(top, left, 24, 24)
        context = degradation.context(part, picture.shape[:2])
        degraded = degradation.degrade(context.of(picture), np.random.default_rng(0))
        found = part.inside(context).reduced(step).of(degraded)
        expected = part.reduced(step).of(whole)
        # Rounding may differ where the sum of some hundred products lies half-way.
        assert np.abs(found - expected).max() <= 1.01 / 255
        assert (found != expected).mean() < 0.005


def test_a_part_costs_little_more_than_itself():
    for degradation in (BicubicDownscaling(4), JpegCompression(10, 90), GaussianNoise(0, 50)):
        context = degradation.context(Region(200, 200, 96, 96), (480, 480))
        assert max(context.height, context.width) <= 96 + 2 * degradation.margin + 2 * degradation.grid


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('noise0-50', GaussianNoise(0, 50)),
        ('noise25-25', GaussianNoise(25, 25)),
        ('noise25', GaussianNoise(25, 25)),
        ('noise2.5-10', GaussianNoise(2.5, 10)),
        ('jpeg10-90', JpegCompression(10, 90)),
        ('bicubic4', BicubicDownscaling(4)),
        ('noise~10', PhotographNoise(10)),
        ('noise~2.5', PhotographNoise(2.5)),
    ],
)
def test_text_forms(text, expected):
    degradation = Degradation.parse(text)
    assert degradation == expected
    assert Degradation.parse(str(degradation)) == degradation


WRONG_TEXTS = """
    blur3 noise noise50-0 noise0-300 noise-5 Noise0-50 jpeg0-50 jpeg10-101 jpeg1.5-3
    bicubic bicubic0 bicubic2-4 bicubic2.5 noise~ noise~1-2 noise~256
"""


@pytest.mark.parametrize('text', ['', 'noise0-50 ', *WRONG_TEXTS.split()])
def test_wrong_text_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r'degradation|noise|jpeg|bicubic') as caught:
        Degradation.parse(text)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('options', 'scale', 'expected'),
    [
        ({'type': 'noise', 'sigma': [0, 50]}, 1, GaussianNoise(0, 50)),
        ({'type': 'jpeg', 'quality': [10, 90]}, 1, JpegCompression(10, 90)),
        ({'type': 'jpeg', 'quality': [10, 90], 'sigma': None}, 1, JpegCompression(10, 90)),
        ({'type': 'bicubic'}, 3, BicubicDownscaling(3)),
        ({'type': 'photo_noise', 'spread': 10}, 1, PhotographNoise(10)),
    ],
)
def test_option_forms(options, scale, expected):
    assert Degradation.from_options(options, scale) == expected


@pytest.mark.parametrize(
    ('options', 'scale', 'named'),
    [
        ({}, 1, 'degradation.type'),
        ({'type': 'blur'}, 1, 'degradation.type.*noise, jpeg, bicubic'),
        ({'type': 'noise'}, 1, 'degradation.sigma'),
        ({'type': 'noise', 'sigma': 25}, 1, 'degradation.sigma'),
        ({'type': 'noise', 'sigma': ['a', 'b']}, 1, 'degradation.sigma'),
        ({'type': 'noise', 'sigma': [True, 5]}, 1, 'degradation.sigma'),
        ({'type': 'noise', 'sigma': [50, 0]}, 1, 'sigma 50 to 0'),
        ({'type': 'noise', 'quality': [0, 50]}, 1, 'degradation.quality'),
        ({'type': 'jpeg', 'quality': [10.5, 90]}, 1, 'quality 10.5'),
        ({'type': 'bicubic', 'sigma': [0, 1]}, 2, 'degradation.sigma'),
        ({'type': 'noise', 'sigma': [0, 50]}, 2, 'scale 1'),
        ({'type': 'bicubic'}, 0, 'scale 0'),
        ({'type': 'photo_noise', 'spread': [0, 10]}, 1, 'degradation.spread'),
    ],
)
def test_wrong_options_are_refused_by_name(options, scale, named):
    with pytest.raises(UsageError, match=named):
        Degradation.from_options(options, scale)


def test_photographs_have_one_plus_half_normal_noise():
    clean = np.full((64, 64, 1), 0.5, np.float32)
    rng = np.random.default_rng(0)
    found = [255 * (PhotographNoise(10).degrade(clean, rng) - clean).std() for _ in range(400)]
    assert min(found) > 0.9
    assert np.mean(found) == pytest.approx(1 + 10 * np.sqrt(2 / np.pi), rel=0.1)
    assert np.median(found) == pytest.approx(1 + 10 * 0.6745, rel=0.1)


def test_a_name_is_given_once():
    with pytest.raises(UsageError, match=r"degradation 'noise' is registered already, as GaussianNoise"):
        register_degradation(type('Other', (GaussianNoise,), {}))


def test_validation_strengths_are_fixed_for_all_time():
    # A change here changes every published figure of a range of strengths.
    assert picture_rng('butterfly', 2).uniform(0, 50) == pytest.approx(BUTTERFLY, abs=1e-9)
    assert picture_rng('butterfly', 3).uniform(0, 50) != pytest.approx(BUTTERFLY, abs=1e-3)
    assert picture_rng('bird', 2).uniform(0, 50) != pytest.approx(BUTTERFLY, abs=1e-3)
