"""Budgets in time: what is measured is kept, and met; no test depends on how fast a machine is."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import classpruning

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.inference import timing
from basicsr_classpruning.inference.patch_plan import PatchPlan
from basicsr_classpruning.inference.prices import Prices
from basicsr_classpruning.inference.restorer import Restorer

CONDITIONS = {'candidates': ('0:4', '2:4', '4:4'), 'threads': 1}
PRICES = Prices(np.array([0.05, 0.5, 0.9]), np.array([False, True, True]), 0.01, 1.0, 'time')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path


def never():
    raise AssertionError('was measured before')


def test_what_is_measured_is_kept_for_the_same_conditions_only():
    assert timing.kept_or_measured(CONDITIONS, lambda: PRICES) == PRICES
    kept = timing.kept_or_measured(CONDITIONS, never)
    assert (kept.candidates == PRICES.candidates).all()
    assert (kept.classifier, kept.dense, kept.unit) == (0.01, 1.0, 'time')
    with pytest.raises(AssertionError):
        timing.kept_or_measured({**CONDITIONS, 'threads': 2}, never)


@pytest.mark.parametrize('content', ['', '[]', '{', '{"dense": 1}', '\x00', None, 'nan', 'short'])
def test_unreadable_files_are_ignored_and_replaced(content):
    timing.kept_or_measured(CONDITIONS, lambda: PRICES)
    (path,) = timing.cache_folder().glob('*.json')
    sound = json.loads(path.read_text())
    broken = {'nan': {**sound, 'dense': float('nan')}, 'short': {**sound, 'candidates': [1.0]}}
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_text(json.dumps(broken[content]) if content in broken else content)
    called = []
    timing.kept_or_measured(CONDITIONS, lambda: called.append(1) or PRICES)
    assert called
    if content is not None:
        timing.kept_or_measured(CONDITIONS, never)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert timing.kept_or_measured(CONDITIONS, lambda: PRICES) == PRICES


def test_other_weights_are_other_conditions():
    one, other = (classpruning('DnCNN', candidates=['0:4', '2:4', '4:4']).routed() for _ in range(2))
    assert timing.conditions_of(one, {}) == timing.conditions_of(other, {})
    next(other.module.parameters()).data.add_(1)
    assert timing.conditions_of(one, {}) != timing.conditions_of(other, {})


def test_lower_quartiles_of_what_takes_turns():
    order = []
    times = {name: itertools.count(start) for name, start in (('a', 0), ('b', 100))}
    found = timing.in_turn({name: lambda name=name: order.append(name) or float(next(times[name])) for name in times})
    assert order[:4] == ['a', 'b', 'a', 'b']
    assert found == {'a': 2.5, 'b': 102.5}  # of 1 to 7: without the first one


def test_maps_like_those_of_photographs():
    """More and more of the same patches run, the hardest ones with the densest candidate, and neighbours are alike."""
    running = np.array([1, 2, 3])
    maps = timing.usual_maps((12, 10), running, 0)
    for fewer, more in itertools.pairwise(maps):
        assert (more >= fewer).all()
    for classes, share in zip(maps, (0.15, 0.35, 0.7)):
        assert (classes > 0).sum() == pytest.approx(120 * share, abs=1)
        counts = np.bincount(classes, minlength=4)[1:]
        assert counts.max() - counts.min() <= 2
    runs = (maps[1] > 0).reshape(12, 10)
    alike = (runs[1:] & runs[:-1]).sum()
    by_chance = 0.35**2 * runs[1:].size
    assert alike > 1.2 * by_chance


def test_prices_of_patches_add_up_to_what_was_measured():
    routed, runs = np.array([0.2, 0.6, 1.1]), np.array([False, True, True])
    prices = timing.prices_of(routed, 0.1, 1.0, runs, halo=1.25, patches=True)
    np.testing.assert_allclose(prices.of_patches * 1.25, routed)
    prices = timing.prices_of(routed, 0.1, 1.0, runs, halo=1.25, patches=False)
    np.testing.assert_allclose(prices.of_tiles * 1.25, routed)


def test_time_is_a_fraction_of_what_the_dense_network_takes_for_the_same_tiles():
    net = classpruning('DnCNN', candidates=['0:4', '2:4', '4:4'])
    image = np.zeros((96, 96, 3), np.float32)
    for unit in ('macs', 'time'):
        costs = []
        for overlap in (0, 32):
            restorer = Restorer(net, tile=64, overlap=overlap, patch=16, device='cpu', threads=1)
            restorer._means = replace(restorer._means, prices=replace(PRICES, unit=unit))
            plan = restorer.start(image).plan
            costs.append(plan.cost(np.full(len(plan.sizes), 2)))
        assert (costs[1] == pytest.approx(costs[0])) == (unit == 'time')


def test_rings_are_paid_as_they_were_measured():
    net = classpruning('DnCNN', candidates=['0:4', '2:4', '4:4'])
    restorer = Restorer(net, tile=64, patch=16, device='cpu', threads=1)
    plan = restorer.start(np.zeros((64, 64, 3), np.float32)).plan
    one = np.zeros(len(plan.sizes), int)
    one[5] = 2  # 16 pixels and a ring of 8 around them
    prices = plan.with_measured_ring(PRICES, [(one, 0.5)])
    computed = 0.06 + (0.9 * 16**2 + prices.ring * 0.9 * (32**2 - 16**2)) / 64**2
    assert computed == pytest.approx(0.5)
    assert prices.ring > 1
    other = one.copy()
    other[9] = 1
    costs = [plan.cost(classes) for classes in (one, other)]  # with rings that cost 1
    for ring in (2.0, 3.0):
        dearer = PatchPlan(plan._patched, replace(PRICES, ring=ring), plan._grid, 16)
        measured = [(classes, dearer.cost(classes)) for classes in (one, other)]
        assert plan.with_measured_ring(PRICES, measured).ring == pytest.approx(ring)
    measured = [(one, 1.2 * costs[0]), (other, 1.5 * costs[1])]
    less, between, more = (plan.with_measured_ring(PRICES, few).ring for few in (measured[:1], measured, measured[1:]))
    assert less < between < more
    everywhere = np.full_like(one, 2)
    assert plan.with_measured_ring(PRICES, [(everywhere, 3.0)]) == PRICES  # nothing around it is bypassed
    assert plan.with_measured_ring(PRICES, [(one, 0.06)]) == PRICES  # less than what is asked for is noise


@pytest.mark.parametrize('patch', [None, 16])
def test_the_budget_is_met_in_the_seconds_that_were_measured(monkeypatch, patch):
    monkeypatch.setattr(timing, 'kept_or_measured', None)
    monkeypatch.setattr('basicsr_classpruning.inference.restorer.kept_or_measured', lambda conditions, measure: PRICES)
    net = classpruning('DnCNN', candidates=['0:4', '2:4', '4:4'])
    picture = np.random.default_rng(0).random((160, 160, 3)).astype(np.float32)
    options = {'tile': 80, 'overlap': 0, 'device': 'cpu', 'threads': 1, 'patch': patch, 'budget_in': 'time'}
    _, stats = Restorer(net, budget=0.6, **options).restore(picture)
    assert stats.spent <= 0.6
    if patch is None:
        cost = dict(zip(net.candidates, PRICES.of_tiles))
        assert stats.spent == pytest.approx(sum(share * cost[name] for name, share in stats.class_share.items()))
    with pytest.raises(UsageError, match=r'0\.02 cannot be met: allowed is 0\.06 to 1 of the dense network\'s time'):
        Restorer(net, budget=0.02, **options)


def test_times_are_measured_and_kept():
    net = classpruning('DnCNN', candidates=['0:4', '2:4', '4:4'])
    options = {'tile': 32, 'overlap': 8, 'device': 'cpu', 'threads': 2, 'patch': 16, 'budget_in': 'time'}
    first, second = (Restorer(net, **options).prices for _ in range(2))
    assert first.unit == 'time'
    assert (first.candidates == second.candidates).all()
    assert first.dense == second.dense > 0
    assert first.ring == second.ring >= 1


def test_what_is_measured_next_waits_until_no_thread_is_busy(monkeypatch):
    used = iter([0.0, 0.002, 0.002, 0.004, 0.004, 0.0041, 0.0041])  # processor time before and after each pause
    monkeypatch.setattr(timing.time, 'process_time', lambda: next(used))
    timing.settle()
    assert list(used) == [0.0041]
