"""The README's plot: PSNR of one table's networks against their MACs and their measured time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from basicsr_classpruning.benchmark.report import plot
from basicsr_classpruning.benchmark.run import Row
from tools.benchmark_tables import instances
from tools.benchmark_tables.plan import LARGE
from tools.pages.benchmarks import RESULTS, Result

FIGURE = Path('docs/figures/psnr_time.png')
_PLOTTED = ('edsr_x2_64', LARGE)
_SOURCE = 'Source'


def write(root: Path) -> None:
    """Draws the plot anew if what it shows has changed: other versions of Matplotlib would draw other bytes."""
    name, test_set = _PLOTTED
    table = next(table for table in instances.TABLES if table.name == name)
    result = Result.read(root / RESULTS, table, test_set)
    if result is None:
        return
    rows, title = rows_of(result), f'{table.title}, {test_set}'
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


def rows_of(result: Result) -> list[Row]:
    """The first seed of every row with the PSNR of the table, but for SR-STE rows: they would flatten it."""
    planned = (row for row in result.table.rows if row.repeats is None and (row.calibrated or not row.sparse))
    labels = {row.name: row.label for row in planned}
    return [
        Row(**{**row, 'model': labels[row['model']], 'psnr': result.psnr(row)})
        for row in result.content['rows']
        if row['model'] in labels
    ]
