"""Writes what routing saves and loses on photographs into docs/benchmarks.md and the README, from the kept results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from basicsr_classpruning.benchmark.rivals import RIVALS
from tools.benchmark_photographs import NETWORKS, Network
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_result, versions_of

RESULTS, TABLES = Path('docs/results/photographs'), Path('docs/results/tables')
_SHOWN_BUDGETS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_SMALL, _SMALL_BUDGETS = ('BSD100', 'Set14'), (0.4, 0.5, 0.63, 0.8, 1.0)
_IN_README = ('edsr_x2_64', 'msrresnet_x4_32', 'dncnn_noise_32')
_FEW = ('auto', 'openvino-int8')  # engines of a smaller network that are always shown
_EXACT = 0.001  # dB, below which an engine changes nothing
_SETS = {'AVX2': ('avx2',), 'AVX-512': ('avx512f',), 'VNNI': ('avx_vnni', 'avx512_vnni')}
_ENGINES = {'auto': 'kernels of this package', 'eager': 'PyTorch', 'torch-compile': 'torch.compile'}


@dataclass(frozen=True)
class Target:
    """What was aimed at for a kind of networks."""

    loss: float
    """dB below the dense network, at which the saved MACs are told."""
    saved: tuple[str, str]
    """Floor and goal of those."""
    budgets: tuple[float, ...] = ()
    """At which ClassPruning is compared with the best that does not look at the picture."""
    gain: tuple[str, str] = ('', '')
    """Floor and goal of that, in dB."""


_TARGETS = {
    'bicubic2': Target(0.03, ('70 %', '80 % at ≤ 0.02 dB'), (0.25,), ('+0.18', '+0.25')),
    'bicubic4': Target(0.03, ('50 %', '70 %')),
    'noise~10': Target(0.05, ('45 %', '65 %'), (0.25, 0.4, 0.5), ('+0.05', '+0.25')),
    'noise0-50': Target(0.05, ('', ''), (0.25, 0.3, 0.4, 0.5, 0.63, 0.8), ('> 0', '+0.05')),
    'jpeg30-95': Target(0.03, ('50 %', '65 %')),
}


@dataclass(frozen=True)
class Comparison:
    """One network's measurements: quality at many budgets, or time."""

    network: Network
    report: dict[str, Any]

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """Those of some kinds."""
        return [row for row in self.report['rows'] if row['kind'] in kinds]

    def psnr(self, row: dict[str, Any]) -> float:
        """In dB, as usual for the task; infinite where the truth is the dense network's own output."""
        found = row[self.network.psnr]
        return float('inf') if found is None else found

    @property
    def dense(self) -> dict[str, Any]:
        """The dense network as this package runs it."""
        return next(row for row in self.rows('dense') if row['backend'] not in RIVALS)

    def densest(self, model: str) -> dict[str, Any]:
        """A model's densest candidate everywhere."""
        return max((row for row in self.rows('candidate') if row['model'] == model), key=_spent)

    def seconds_at(self, psnr: float, rows: Iterable[dict[str, Any]]) -> float:
        """What rows of budgets take at a PSNR, in between them."""
        known, seconds = zip(*sorted((self.psnr(row), row['seconds']) for row in rows))
        return float(np.interp(psnr, known, seconds))

    def fixed(self, spent: float) -> float | None:
        """PSNR of the best candidate for everything, or random mix of two, at a share of the dense MACs."""
        points = sorted((_spent(row), self.psnr(row)) for row in self.rows('candidate'))
        points = [point for point in points if np.isfinite(point[1])]
        if not points or spent < points[0][0] * 0.99:
            return None
        xs, ys = zip(*points)
        return max(float(np.interp(spent, xs, ys)), *(y for x, y in points if x <= spent * 1.01))

    def gain(self, row: dict[str, Any]) -> float | None:
        """Over the best candidate for everything, or random mix of two, of the same cost."""
        fixed = self.fixed(_spent(row))
        return None if fixed is None else self.psnr(row) - fixed


def _spent(row: dict[str, Any]) -> float:
    return row['macs'] / row['macs_dense']


def quality(comparisons: Sequence[Comparison]) -> str:
    """PSNR below the dense network at budgets, beside the best of what does not look at the picture."""
    lines = []
    for one in comparisons:
        for kind, label in (('budget', 'ClassPruning'), ('oracle', 'the oracle')):
            found = {row['budget']: row for row in one.rows(kind)}
            cells = [_to_dense(one, found.get(budget)) for budget in _SHOWN_BUDGETS]
            lines.append([one.network.label if kind == 'budget' else '', label, *cells])
        fixed = [one.fixed(budget) for budget in _SHOWN_BUDGETS]
        lines.append(['', 'one candidate, or a random mix', *(_cell(one, psnr) for psnr in fixed)])
    return markdown_table(['network', 'at budget', *(f'{budget:g}' for budget in _SHOWN_BUDGETS)], lines)


def _to_dense(one: Comparison, row: dict[str, Any] | None) -> str:
    return '' if row is None else _cell(one, one.psnr(row))


def _cell(one: Comparison, psnr: float | None) -> str:
    if psnr is None:
        return ''
    return f'{psnr:.2f}' if one.network.against_dense else f'{psnr - one.psnr(one.dense):+.3f}'


def targets(comparisons: Iterable[Comparison], timed: Iterable[Comparison] = ()) -> str:
    """What was aimed at, and what was reached; ``timed`` are comparisons of time."""
    lines = []
    times = {one.network.name: one for one in timed}
    for one in comparisons:
        budgets = {row['budget']: row for row in one.rows('budget')}
        found: list[tuple[str, str, str, str]] = []
        if not one.network.against_dense:
            target = _TARGETS[one.network.degrade]
            found.append((f'MACs saved at ≤ {target.loss} dB', *target.saved, _saved(one, target.loss)))
            gains = [(budget, one.gain(budgets[budget])) for budget in target.budgets if budget in budgets]
            known = [(f'{budget:g}', f'{gain:+.3f}') for budget, gain in gains if gain is not None]
            if known:
                where, text = map(', '.join, zip(*known))
                found.append((f'dB above one candidate or a mix at budget {where}', *target.gain, text))
            if one.network.name in times:
                found.append((f'time at −{target.loss} dB, over the share of the MACs', '1.15', '1.05',
                              _time_over_macs(times[one.network.name], target.loss)))  # fmt: skip
        found.append(("share of the oracle's gain, budgets 0.15 to 0.4", '60 %', '80 %', _share(one)))
        off = [_spent(row) / row['budget'] - 1 for row in budgets.values() if not row['enough']]
        found.append(('distance from the budget, where it is spent', '±1 %', '', f'{min(off):+.1%} to {max(off):+.1%}'))
        psnr = [one.psnr(budgets[budget]) for budget in sorted(budgets)]
        fall = min(np.diff([value for value in psnr if np.isfinite(value)]))
        found.append(('largest fall of PSNR as the budget rises (dB)', '0', '', f'{max(0.0, -fall):.3f}'))
        lines += [[one.network.label if not number else '', *cells] for number, cells in enumerate(found)]
    return markdown_table(['network', 'what', 'floor', 'goal', 'reached'], lines)


def small_pictures(root: Path) -> str:
    """How much better patches with a bypass restore small pictures than whole tiles without, where as much is computed,
    the halos of tiles included."""
    lines = []
    for network in NETWORKS:
        for pictures in _SMALL if network.tiled else ():
            paths = (RESULTS / f'{network.name}_{pictures}.json', TABLES / f'{network.tiled}_{pictures}.json')
            if all((root / path).is_file() for path in paths):
                patches, tiles = (Comparison(network, read_result(root / path)) for path in paths)
                budgets, known = zip(*sorted(_at_budgets(tiles).items()))
                found, halos = _at_budgets(patches), patches.report['halos_of_tiles']
                same = np.interp([budget / halos for budget in _SMALL_BUDGETS], budgets, known)
                gains = [f'{found[budget] - psnr:+.3f}' for budget, psnr in zip(_SMALL_BUDGETS, same)]
                lines.append([network.label, pictures, *gains])
    return markdown_table(['network', 'pictures', *(f'{budget:g}' for budget in _SMALL_BUDGETS)], lines)


def _at_budgets(one: Comparison) -> dict[float, float]:
    """PSNR of the first routed network, by budget."""
    rows = one.rows('budget')
    return {row['budget']: one.psnr(row) for row in rows if row['model'] == rows[0]['model']}


def _saved(one: Comparison, loss: float) -> str:
    least = one.psnr(one.dense) - loss
    psnr, saved = zip(*sorted((one.psnr(row), 1 - _spent(row)) for row in one.rows('budget')))
    if least > psnr[-1]:
        return f'not reached: {psnr[-1] - one.psnr(one.dense):+.3f} dB at most'
    return f'{np.interp(least, psnr, saved):.0%}'


def _time_over_macs(one: Comparison, loss: float) -> str:
    """Of budgets that lose so much: the share of the densest candidate's time, over that of the MACs."""
    least, found = one.psnr(one.dense) - loss, []
    for model in dict.fromkeys(row['model'] for row in one.rows('budget')):
        rows = [row for row in one.rows('budget') if row['model'] == model]
        psnr, spent = zip(*sorted((one.psnr(row), _spent(row)) for row in rows))
        if psnr[0] <= least <= psnr[-1]:
            share = one.seconds_at(least, rows) / one.densest(model)['seconds']
            precision = 'int8' if in_int8(rows[0]) else 'fp32'
            found.append(f'{share / np.interp(least, psnr, spent):.2f} ({precision})')
    return ', '.join(found) or 'no budget loses so little'


def in_int8(row: dict[str, Any]) -> bool:
    """Whether a row's model is the one whose candidates compute in 8-bit integers."""
    return row['model'].endswith('_int8_photographs')


def _share(one: Comparison) -> str:
    oracle = {row['budget']: row for row in one.rows('oracle')}
    shares = []
    for row in one.rows('budget'):
        fixed, best = one.fixed(_spent(row)), oracle[row['budget']]
        if 0.15 <= row['budget'] <= 0.4 and fixed is not None and one.psnr(best) > fixed:
            shares.append((one.psnr(row) - fixed) / (one.psnr(best) - fixed))
    return f'{np.mean(shares):.0%}' if shares else ''


def engines(comparisons: Sequence[Comparison], few: bool = False) -> str:
    """The dense network in every engine, and ClassPruning, by speed.

    Args:
        comparisons: of time.
        few: leaves out what is slower than the rival, but PyTorch, fixed candidates but the sparsest and the last, and
            a smaller network in most engines.
    """
    parts = []
    for one in comparisons:
        rival = _rival(one)
        lines = []
        shown = min(one.rows('candidate'), key=_spent), one.rows('candidate')[-1]
        for row in one.rows('dense', 'candidate', 'budget'):
            slow = row['seconds'] > rival['seconds'] and row['backend'] != 'eager'
            other = row['kind'] == 'dense' and row['model'] != one.dense['model'] and row['backend'] not in _FEW
            if few and (slow or other or (row['kind'] == 'candidate' and row not in shown)):
                continue
            dense = 'dense' if row['model'] == one.dense['model'] else (one.network.narrower or ('', ''))[1]
            what = {'dense': dense, 'candidate': f'{row["candidate"]} everywhere'}.get(row['kind'])
            speed = f'{rival["seconds"] / row["seconds"]:.2f}×'
            loss = 'equal' if abs(_loss(one, row)) < _EXACT / 2 else _to_dense(one, row)
            spent = f'{row["macs"] / one.dense["macs"]:.1%}'
            cells = [_ENGINES.get(row['backend'], row['backend']), loss, spent, speed]
            precision = ' in int8' if in_int8(row) else ''
            lines.append([what or f'ClassPruning{precision}, budget {row["budget"]:g} of its time', *cells])
        compared = 'PSNR to the dense output' if one.network.against_dense else 'dB to dense'
        header = ['what', 'engine', compared, 'MACs', f'speed over {rival["backend"]}']
        parts.append(f'{caption(one)}\n\n{markdown_table(header, lines)}')
    return '\n\n'.join(parts)


def _rival(one: Comparison) -> dict[str, Any]:
    """The fastest engine of others that changes nothing."""
    exact = [row for row in one.rows('dense') if row['backend'] in RIVALS and abs(_loss(one, row)) < _EXACT]
    return min(exact, key=lambda row: row['seconds'])


def headline(one: Comparison) -> str:
    """What is saved, what it costs, and against whom, in a sentence; of budgets that lose at most 0.1 dB."""
    rival = _rival(one)
    rows = [row for row in one.rows('budget') if _loss(one, row) <= 0.1]
    careful = min((row for row in rows if _loss(one, row) <= 0.03), key=lambda row: row['seconds'])
    fast = min(rows, key=lambda row: row['seconds'])

    def said(row: dict[str, Any]) -> str:
        precision = '8-bit integers' if in_int8(row) else 'float32'
        return f'**{rival["seconds"] / row["seconds"]:.1f} times** as fast at {-_loss(one, row):+.3f} dB in {precision}'

    alone = rival['seconds'] / one.dense['seconds']
    return (
        f'Photographs of two megapixels, enlarged by {one.network.label}, one thread: {said(careful)}, {said(fast)}, '
        f'against the dense network in {rival["backend"]}, the fastest engine of others that changes nothing (our '
        f'kernels run it {alone:.1f} times as fast); {1 - _spent(careful):.0%} and {1 - _spent(fast):.0%} of the MACs '
        'are saved.'
    )


def _loss(one: Comparison, row: dict[str, Any]) -> float:
    dense, psnr = one.psnr(one.dense), one.psnr(row)
    return 0.0 if psnr == dense else dense - psnr  # both may be infinite


def caption(one: Comparison) -> str:
    """What was measured, how and on what."""
    return f'{one.network.label}: {_pictures(one)}; {_machine(one)}.'


def captions(comparisons: Sequence[Comparison]) -> str:
    """The same of several, those from the same machine and versions together."""
    lines = []
    for machine in dict.fromkeys(map(_machine, comparisons)):
        own = [one for one in comparisons if _machine(one) == machine]
        lines += [f'* {one.network.label}: {_pictures(one)}' for one in own]
        lines.append(f'\n{machine}.\n')
    return '\n'.join(lines).strip()


def _pictures(one: Comparison) -> str:
    _, _, side = (one.report['gt'] or '').partition('_middle')
    middle = f', the middle {side} × {side} pixels of each' if side else ''
    return f'{one.report["pictures"]} photographs{middle}'


def _machine(one: Comparison) -> str:
    machine = one.report['machine']
    sets = ', '.join(label for label, names in _SETS.items() if set(names) & set(machine['instruction_sets']))
    return f'{machine["processor"]} ({sets}), {one.report["threads"]} thread(s); {versions_of(machine)}'


def read_comparisons(root: Path, suffix: str = '') -> list[Comparison]:
    """All whose results are there: of quality, or with a suffix others."""
    paths = [(network, root / RESULTS / f'{network.name}{suffix}.json') for network in NETWORKS]
    return [Comparison(network, read_result(path)) for network, path in paths if path.is_file()]


def read_timed(root: Path) -> list[Comparison]:
    """Those of time, from idle machines: others' times mean nothing."""
    return [one for one in read_comparisons(root, '_engines') if one.report['idle']]


def write(root: Path) -> None:
    """Writes the tables, as far as their results are there."""
    found, timed = read_comparisons(root), read_timed(root)
    if found:
        tables = {'photographs': quality(found), 'targets': targets(found, timed)}
        tables |= {'photographs measured': captions(found), 'small pictures': small_pictures(root)}
        write_blocks(root / 'docs/benchmarks.md', tables)
        few = [one for one in found if one.network.name in _IN_README]
        write_blocks(root / 'README.md', {'photographs': quality(few)})
    if timed:
        write_blocks(root / 'docs/benchmarks.md', {'engines': engines(timed)})
        first = timed[:1]
        write_blocks(root / 'README.md', {'headline': headline(first[0]), 'engines': engines(first, few=True)})
