"""Tiles: sizes, coverage, mirrored edges, weights that add up, exactness where overlap covers the receptive field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.inference.tiling import Blender, batches, mirrored, plan_tiles, usual_tile
from basicsr_classpruning.sizes import SizeRequirements

sides = st.integers(1, 400)


@pytest.mark.parametrize(
    ('rule', 'patch', 'wanted'),
    [((1, 1), None, 96), ((1, 8), None, 96), ((1, 128), None, 256), ((1, 1), 32, 192), ((1, 8), 256, 256)],
)
def test_the_usual_tile_is_one_that_the_network_takes(rule, patch, wanted):
    sizes = SizeRequirements(*rule)
    tile = usual_tile(8, sizes, patch)
    assert tile == wanted
    assert plan_tiles(1000, 700, tile, 8, sizes).tile_size <= (tile, tile)


@given(
    height=sides,
    width=sides,
    tile=st.integers(16, 120),
    overlap=st.integers(0, 15),
    multiple=st.sampled_from([1, 2, 7, 8]),
)
@settings(max_examples=200, deadline=None)
def test_grid_covers_the_picture(height, width, tile, overlap, multiple):
    rule = SizeRequirements(1, multiple)
    if tile < multiple + -(-overlap // multiple) * multiple:
        with pytest.raises(UsageError, match=f'tile {tile}'):
            plan_tiles(height, width, tile, overlap, rule)
        return
    grid = plan_tiles(height, width, tile, overlap, rule)
    for axis, length in ((grid.rows, height), (grid.cols, width)):
        assert axis.starts[0] == 0
        assert length <= axis.padded < length + max(multiple, 2)
        assert axis.tile <= max(tile, multiple)
        assert axis.tile % multiple == 0
        assert all(start % multiple == 0 for start in axis.starts)
        assert all(first + axis.tile - second >= overlap for first, second in zip(axis.starts, axis.starts[1:]))
        assert all(first < second for first, second in zip(axis.starts, axis.starts[1:]))
        if length <= tile // multiple * multiple:
            assert len(axis.starts) == 1


@given(
    length=st.integers(30, 300),
    tile=st.integers(20, 64),
    overlap=st.integers(0, 19),
    scale=st.sampled_from([1, 2, 4]),
    margin=st.one_of(st.none(), st.integers(0, 12)),
)
@settings(max_examples=200, deadline=None)
def test_weights_add_up_to_one(length, tile, overlap, scale, margin):
    axis = plan_tiles(length, 1, tile, overlap).rows
    total = np.zeros(axis.padded * scale)
    for index, start in enumerate(axis.starts):
        weights = axis.weights(index, scale, margin)
        assert (weights >= 0).all()
        total[start * scale : (start + axis.tile) * scale] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_edges_within_the_margin_get_no_weight():
    axis = plan_tiles(100, 1, 48, 20).rows
    overlap = axis.starts[0] + axis.tile - axis.starts[1]
    weights = axis.weights(1, 2, margin=9)
    assert overlap > 2 * 9
    assert (weights[: 9 * 2] == 0).all()
    assert weights[overlap * 2 : -overlap * 2].min() == 1


@pytest.mark.parametrize('length', [1, 2, 5])
def test_mirrored_positions(length):
    line = np.arange(length)
    wanted = np.pad(line, (0, 13), mode='reflect') if length > 1 else np.zeros(14, int)
    np.testing.assert_array_equal(line[mirrored(np.arange(length + 13), length)], wanted)


@given(height=sides, width=sides, scale=st.sampled_from([1, 2, 3]), multiple=st.sampled_from([1, 8]))
@settings(max_examples=60, deadline=None)
def test_cut_and_blend_give_the_picture_back(height, width, scale, multiple):
    """With a network that only enlarges, blending is exact."""
    rng = np.random.default_rng(height)
    picture = rng.random((height, width, 2), np.float32)
    grid = plan_tiles(height, width, 48, 8, SizeRequirements(1, multiple))
    blender = Blender(grid, scale, 2, margin=None)
    columns = len(grid.cols.starts)
    bands = []
    for row in range(len(grid.rows.starts)):
        for column in range(columns):
            tile = grid.cut(picture, row * columns + column).transpose(2, 0, 1)
            blender.add(column, tile.repeat(scale, 1).repeat(scale, 2))
        bands += [band.copy() for band in blender.finish_row()]
    result = np.concatenate(bands)
    np.testing.assert_allclose(result, picture.repeat(scale, 0).repeat(scale, 1), atol=1e-6)


def test_seam_of_two_constant_tiles_is_a_straight_ramp():
    grid = plan_tiles(8, 88, 48, 8)
    assert grid.cols.starts == (0, 40)
    blender = Blender(grid, 1, 1, margin=None)
    for column in range(2):
        blender.add(column, np.full((1, 8, 48), float(column), np.float32))
    band = next(blender.finish_row())
    line = band[4, :, 0]
    assert (line[:42] == 0).all()
    assert (line[46:] == 1).all()
    np.testing.assert_allclose(np.diff(line[42:46]), 0.25, atol=1e-6)


def test_memory_is_one_row_of_tiles():
    for height in (100, 400, 40_000):
        grid = plan_tiles(height, 500, 96, 8)
        assert Blender(grid, 4, 3, None)._sum.nbytes <= 3 * (96 * 4) * (grid.cols.padded * 4) * 4


def test_tiles_shrink_so_that_little_is_computed_twice():
    grid = plan_tiles(160, 240, 96, 8)
    assert (len(grid.rows.starts), len(grid.cols.starts)) == (2, 3)
    assert grid.tile_size == (88, 88)


def test_wrong_tiles():
    for tile, overlap, allowed in ((8, 8, '9'), (0, 0, '1'), (-5, 0, '1')):
        with pytest.raises(UsageError, match=f'needs at least {allowed}'):
            plan_tiles(10, 10, tile, overlap)
    with pytest.raises(UsageError, match='overlap -1'):
        plan_tiles(10, 10, 8, -1)


def test_batches_are_always_cut_alike():
    assert [list(b) for b in batches(np.arange(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    overlap=st.integers(0, 16),
    multiple=st.sampled_from([1, 8, 32]),
)
@settings(deadline=None)
def test_tiles_of_networks_that_take_squares_are_square(height, width, overlap, multiple):
    sizes = SizeRequirements(scale=1, multiple=multiple, minimum=multiple, square=True)
    grid = plan_tiles(height, width, 96, overlap, sizes)
    assert grid.tile_size[0] == grid.tile_size[1] <= 96
    assert grid.tile_size[0] % multiple == 0
    for axis, length in ((grid.rows, height), (grid.cols, width)):
        assert axis.starts[0] == 0
        assert axis.padded >= length
        steps = np.diff(axis.starts)
        assert (steps > 0).all()
        assert (axis.tile - steps >= overlap).all()
