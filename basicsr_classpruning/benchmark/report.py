"""A benchmark's rows as text: CSV, Markdown, a table for the terminal, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.benchmark.metrics import shown
from basicsr_classpruning.benchmark.run import Row
from basicsr_classpruning.routing.budget import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = ('model', 'what', 'PSNR', 'PSNR-Y', 'SSIM', 'average MACs', 'saved', 'seconds', 'backend', 'shares')
_ENGINE_MARKERS = 'sDPphXd8H'  # of a dense network in one engine and in others


def to_csv(rows: Sequence[Row]) -> str:
    """All columns; the class shares as ``1:4=0.2 2:4=0.8``, the equal images as ``psnr=1 psnr_y=1``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(asdict(rows[0])), lineterminator='\n')
    writer.writeheader()
    for row in rows:
        share = ' '.join(f'{name}={value:.4f}' for name, value in row.class_share.items())
        equal = ' '.join(f'{name}={count}' for name, count in row.equal.items())
        writer.writerow({**asdict(row), 'class_share': share, 'equal': equal})
    return stream.getvalue()


def to_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The header and the rows as a person reads them."""
    return [list(_HEADER), *map(_cells, rows)]


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    header, *lines = to_cells(rows)
    right = ('---', '---', *['---:'] * 6, '---', '---')
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, right, *lines)) + '\n'


def what(row: Row) -> str:
    """A row in few words, e.g. ``budget 0.6``."""
    if row.kind == 'candidate':
        return str(row.candidate)
    named = row.kind if row.budget is None else f'{row.kind} {row.budget:g}'
    return named if row.patch is None else f'{named}, {row.patch} px'


def unspent(rows: Sequence[Row]) -> list[str]:
    """A line for each budget that was not spent, as more would not help."""
    return [
        f'{row.model}, {what(row)}: {row.macs / row.macs_dense:.2f} of {row.budget:.2f} spent: more would not help'
        for row in rows
        if row.enough and row.budget_in == 'macs' and row.budget is not None
        if row.macs < row.budget * row.macs_dense * (1 - TOLERANCE)
    ]


def _cells(row: Row) -> list[str]:
    decibels = [shown(getattr(row, key), row.equal.get(key, 0), 3) for key in ('psnr', 'psnr_y')]
    shares = ' '.join(f'{name} {value:.0%}' for name, value in row.class_share.items())
    macs, seconds = f'{row.macs / 1e9:.3f} G', f'{row.seconds:.3g}'
    return [row.model, what(row), *decibels, f'{row.ssim:.4f}', macs, f'{row.saved:.1%}', seconds, row.backend, shares]


def plot(rows: Sequence[Row], title: str) -> bytes:
    """PSNR against average MACs and against measured time, as a PNG file.

    Dense networks are points, candidates crosses; budgets, oracle and random are curves.
    """
    with _plain_text():
        return _save(_figure(rows, title), format='png', dpi=120)


def plot_svg(rows: Sequence[Row]) -> str:
    """The same plot as an ``<svg>`` element, transparent, its text and axes in the colour of the text around it."""
    from matplotlib import rc_context

    text = '#010203'  # stands for a colour that only the page knows
    names = ('axes.edgecolor', 'axes.labelcolor', 'text.color', 'xtick.color', 'ytick.color', 'grid.color')
    colours: dict[Any, Any] = dict.fromkeys(names, text) | {'legend.facecolor': 'none', 'axes.facecolor': 'none'}
    with _plain_text(), rc_context({**colours, 'svg.hashsalt': 'classpruning'}):
        content = _save(_figure(rows, None), format='svg', transparent=True, metadata={'Date': None}).decode()
    return content[content.index('<svg') :].replace(text, 'currentColor')


def _plain_text() -> Any:
    """A name with dollar signs is a name, no formula."""
    from matplotlib import rc_context

    return rc_context({'text.parse_math': False})


def _figure(rows: Sequence[Row], title: str | None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title or '')
    left, right = figure.subplots(1, 2, sharey=True)
    drawn = [row for row in rows if row.psnr is not None]
    _draw(left, drawn, [row.macs / 1e9 for row in drawn])
    _draw(right, drawn, [row.seconds for row in drawn])
    left.set(xlabel='average MACs of a tile (G)', ylabel='PSNR (dB)')
    right.set(xlabel=f'measured time (s, {rows[0].threads} thread(s))')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize='small')
    return figure


def _save(figure: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, **options)
    return stream.getvalue()


def _draw(axes, rows: Sequence[Row], x: Sequence[float]) -> None:
    styles = {'budget': '-o', 'oracle': '--^', 'random': ':v', 'candidate': 'x', 'routed': '*', 'dense': 's'}
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row, position in zip(rows, x):
        label = row.backend if row.kind == 'dense' else ''
        groups.setdefault((row.model, row.kind, label), []).append((position, row.psnr or 0.0))
    models = list(dict.fromkeys(row.model for row in rows))
    engines = list(dict.fromkeys(label for _, _, label in groups if label))
    for (model, kind, label), points in groups.items():
        style = _ENGINE_MARKERS[engines.index(label) % len(_ENGINE_MARKERS)] if label else styles[kind]
        colour = f'C{models.index(model) % 10}'
        name = ' '.join(filter(None, dict.fromkeys((model, kind, label))))  # a model may be called dense
        axes.plot(*zip(*sorted(points)), style, color=colour, label=name, alpha=0.8)
