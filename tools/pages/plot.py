"""The README's plot: PSNR on photographs against MACs and measured time, beside other engines."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from basicsr_classpruning.benchmark.report import plot
from basicsr_classpruning.benchmark.run import Row
from tools.pages.photographs import Comparison, in_int8, read_timed

FIGURE = Path('docs/figures/psnr_time.png')
_SOURCE = 'Source'


def write(root: Path) -> None:
    """Draws the plot anew if what it shows has changed: other versions of Matplotlib would draw other bytes."""
    timed = read_timed(root)
    if not timed:
        return
    rows, title = rows_of(timed[0]), f'{timed[0].network.label}: photographs of two megapixels'
    digest = hashlib.sha256(repr((title, rows)).encode()).hexdigest()
    figure = root / FIGURE
    if drawn_from(figure) == digest:
        return
    information = PngInfo()
    information.add_text(_SOURCE, digest)
    figure.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(plot(rows, title))) as picture:
        picture.save(figure, pnginfo=information)


def drawn_from(figure: Path) -> str | None:
    """A hash of what a plot shows, as it is kept in the file."""
    if not figure.is_file():
        return None
    with Image.open(figure) as picture:
        return picture.info.get(_SOURCE)


def rows_of(comparison: Comparison) -> list[Row]:
    """Of the dense network in every engine, and of ClassPruning, with the PSNR that is compared.

    What loses more than 0.5 dB is left out: it would flatten all others.
    """
    least = comparison.psnr(comparison.dense) - 0.5
    rows = [row for row in comparison.rows('dense', 'candidate', 'budget') if comparison.psnr(row) >= least]
    return [Row(**{**row, 'model': _name(comparison, row), 'psnr': comparison.psnr(row)}) for row in rows]


def _name(comparison: Comparison, row: dict[str, Any]) -> str:
    if row['kind'] == 'dense':
        return 'dense' if row['model'] == comparison.dense['model'] else 'smaller'
    return 'ClassPruning in int8' if in_int8(row) else 'ClassPruning'
