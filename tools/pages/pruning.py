"""Writes the tables of docs/pruning.md from the results of tools/benchmark_pruning.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.benchmark_pruning import NETWORKS
from tools.pages.markdown import markdown_table, write_blocks
from tools.pages.results import read_results, versions_of

Results = dict[str, dict[str, Any]]
"""By the names of their files."""


def write(root: Path) -> None:
    """Writes the tables into the page, as far as their result files are there."""
    results = read_results(root / 'docs/results/prune')
    blocks = {table.__name__: table(results) for table in (losses, routed, weights, measured)}
    write_blocks(root / 'docs/pruning.md', blocks)


def of_kind(result: dict[str, Any] | None, kind: str) -> dict[Any, dict[str, Any]]:
    """Rows of a kind, by candidate or budget."""
    rows = result['rows'] if result else []
    return {row['candidate'] if kind == 'candidate' else row['budget']: row for row in rows if row['kind'] == kind}


def losses(results: Results) -> str:
    """What each candidate loses on the test pictures, beside plain magnitude."""
    lines = []
    for network in NETWORKS:
        for test_set in network.test_sets:
            candidates = of_kind(results.get(f'{network.name}_{test_set}'), 'candidate')
            magnitude = of_kind(results.get(f'{network.name}_magnitude_{test_set}'), 'candidate')
            dense = next((row for row in candidates.values() if row['saved'] == 0), None)
            for name, row in candidates.items():
                if network.against_dense and row is dense:
                    continue  # its PSNR is limited by nothing but rounding
                cells = [network.label, test_set, name, f'{1 - row["saved"]:.1%}', f'{row[network.psnr]:.3f}']
                plain = magnitude[name][network.psnr] if name in magnitude else None
                if dense is None or row is dense or network.against_dense:
                    cells += ['', '' if plain is None or row is dense else f'PSNR {plain:.3f}', '']
                else:
                    loss = dense[network.psnr] - row[network.psnr]
                    by_magnitude = None if plain is None else dense[network.psnr] - plain
                    cells.append(f'{loss:.3f}')
                    cells += ['', ''] if by_magnitude is None else [f'{by_magnitude:.3f}', f'{loss / by_magnitude:.1%}']
                lines.append(cells)
    return markdown_table(['network', 'pictures', 'candidate', 'MACs', 'PSNR', 'loss', 'magnitude', 'of it'], lines)


def routed(results: Results) -> str:
    """Budgets beside the best single candidate within the budget, and beside the two reference curves."""
    lines = []
    for network in NETWORKS:
        for test_set in network.test_sets:
            result = results.get(f'{network.name}_{test_set}')
            candidates = list(of_kind(result, 'candidate').values())
            oracle, random = of_kind(result, 'oracle'), of_kind(result, 'random')
            for budget, row in of_kind(result, 'budget').items():
                key, digits = ('ssim', 4) if network.against_dense else (network.psnr, 3)
                affordable = (one for one in candidates if one['macs'] <= budget * one['macs_dense'])
                best = max(affordable, key=lambda one: one[key])
                value, fixed, by_chance, at_best = (one[key] for one in (row, best, random[budget], oracle[budget]))
                cells = [network.label, test_set, f'{budget:g}', f'{1 - row["saved"]:.1%}', f'{value:.{digits}f}']
                cells += [f'{fixed:.{digits}f} ({best["candidate"]})', f'{value - fixed:+.{digits}f}']
                cells += [f'{by_chance:.{digits}f}', f'{value - by_chance:+.{digits}f}', f'{at_best:.{digits}f}']
                lines.append(cells)
    header = ['network', 'pictures', 'budget', 'average MACs', 'routed', 'best fixed', 'gain', 'random', 'gain']
    return markdown_table([*header, 'oracle'], lines)


def weights(results: Results) -> str:
    """Own and shared weights: loss on held-out calibration crops, and file size."""
    lines = []
    for network in NETWORKS:
        result = results.get(f'{network.name}_prune')
        if result is None:
            continue
        for kind in sorted(result['weights'], key=lambda one: one['kind']):
            sparse = [one for one in kind['candidates'] if one['candidate'] != 'dense']
            figures = ', '.join(map(_loss, sparse))
            size = kind['file_bytes'] / result['file_bytes_dense']
            lines.append([network.label, kind['kind'], f'{kind["file_bytes"] / 1e6:.2f} MB ({size:.2f}×)', figures])
    return markdown_table(['network', 'weights', 'file (of the dense one)', 'loss of each candidate (dB)'], lines)


def _loss(candidate: dict[str, Any]) -> str:
    """What a candidate loses; where the dense outputs are the truth, its PSNR to them."""
    loss = candidate['loss']
    return f'{candidate["candidate"]} ' + (f'PSNR {candidate["psnr"]:.2f}' if loss is None else f'{loss:.3f}')


def measured(results: Results) -> str:
    """The commands, and what they ran on."""
    lines = []
    for name, result in results.items():
        machine = result['machine']
        processor = f'{machine["processor"]}, torch on {machine["torch_instruction_set"]}'
        about = f'{processor}, {result["threads"]} thread(s); {versions_of(machine)}'
        lines.append(f'* `{name}.json`: `{result["command"]}` ({about})')
    return '\n'.join(lines)
