"""A benchmark as one HTML page that needs nothing else: table, plots, and images before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import cv2
import numpy as np
from PIL import Image

from basicsr_classpruning.benchmark.metrics import compare
from basicsr_classpruning.benchmark.report import plot_svg, to_cells, what
from basicsr_classpruning.benchmark.run import Row, Sample, shown_row
from basicsr_classpruning.data.degradations import as_uint8
from basicsr_classpruning.inference.class_map import candidate_colours, tint_tiles

MOST_PICTURES = 12
LONGEST_SIDE = 1024  # pixels of an image on the page; larger ones are shrunk
_QUALITY = 90  # of WebP: a page of twelve images takes a few megabytes


@dataclass(frozen=True)
class SampleImage:
    """One image on the page."""

    name: str
    width: int
    """Pixels of the restored image on the page, as ``height``."""
    height: int
    shrunk: bool
    psnr_before: float
    """dB, of the degraded image enlarged bicubically."""
    psnr: float
    saved: float
    tiles: int
    class_share: dict[str, float]
    before: str
    """``data:`` address of the degraded image, enlarged to the restored one's size."""
    after: str
    class_map: str | None
    """None for a dense network's image."""


class Gallery:
    """Keeps the first images of a benchmark, compressed, for the page: `Benchmark` is given its ``add``."""

    def __init__(self) -> None:
        self.samples: list[SampleImage] = []

    def add(self, sample: Sample) -> None:
        """Keeps an image, unless there are `MOST_PICTURES` already."""
        if len(self.samples) == MOST_PICTURES:
            return
        height, width = sample.restored.shape[:2]
        degraded = as_uint8(sample.pair.degraded)
        scale = height // degraded.shape[0]
        before = cv2.resize(degraded, (width, height), interpolation=cv2.INTER_CUBIC).reshape(sample.restored.shape)
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        shares: dict[str, float] = {}
        class_map = None
        if sample.candidates:
            colours = candidate_colours(len(sample.candidates))
            counts = np.bincount(sample.classes, minlength=len(colours))
            shares = dict(zip(sample.candidates, (counts / len(sample.classes)).tolist()))
            class_map = _to_address(tint_tiles(degraded, sample.grid, sample.classes, colours, factor * scale), size)
        self.samples.append(
            SampleImage(
                name=sample.pair.name,
                width=size[0],
                height=size[1],
                shrunk=factor < 1,
                psnr_before=compare(before, sample.pair.truth, scale).psnr,
                psnr=sample.quality.psnr,
                saved=sample.saved,
                tiles=len(sample.classes),
                class_share=shares,
                before=_to_address(before, size),
                after=_to_address(sample.restored, size),
                class_map=class_map,
            )
        )


def to_html(rows: Sequence[Row], samples: Sequence[SampleImage], title: str, report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        rows: the benchmark's rows.
        samples: a `Gallery`'s.
        title: what was restored.
        report: what the JSON file says besides the rows: the machine and the settings.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters['coloured'] = _coloured
    template = resources.files('basicsr_classpruning.benchmark').joinpath('page.html.jinja')
    header, *lines = (cells[:-1] for cells in to_cells(rows))  # shares are drawn
    shown = shown_row([row.kind for row in rows])
    return environment.from_string(template.read_text(encoding='utf-8')).render(
        title=title,
        header=header,
        lines=list(zip(rows, lines)),
        plot=plot_svg(rows),
        shown=rows[shown],
        shown_as=what(rows[shown]),
        samples=samples,
        longest_side=LONGEST_SIDE,
        quality=_QUALITY,
        report=report,
    )


def _coloured(class_share: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """Candidate, share and CSS colour, as on the class map."""
    colours = candidate_colours(len(class_share)) if class_share else np.empty((0, 3))
    return [(name, share, _css(colour)) for (name, share), colour in zip(class_share.items(), colours)]


def _css(colour: np.ndarray) -> str:
    return '#' + ''.join(f'{int(part):02x}' for part in colour)


def _to_address(pixels: np.ndarray, size: tuple[int, int]) -> str:
    """A ``data:`` address of an image ``(H, W, C)`` uint8, grey or RGB, shrunk to ``size`` (width, height)."""
    if pixels.shape[1::-1] != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    stream = io.BytesIO()
    Image.fromarray(np.squeeze(pixels)).save(stream, 'WEBP', quality=_QUALITY, method=4)
    return 'data:image/webp;base64,' + base64.b64encode(stream.getvalue()).decode()
