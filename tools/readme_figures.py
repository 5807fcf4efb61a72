#!/usr/bin/env python
"""Makes the two figures of the README from a ClassPruning denoiser or enlarger and scikit-image's photographs.

    python tools/readme_figures.py CHECKPOINT [--dense FILE] [--degrade noise25-25] [--budget 0.5]
        [--photograph chelsea] [--report FILE.json]

* ``docs/figures/class_map.jpg``: a degraded photograph, the candidate of each tile, and the restored photograph.
* ``docs/figures/psnr_time.png``: PSNR against average MACs and measured time, on three photographs that the demo does
  not train on, or, with ``--report``, of a file that ``classpruning benchmark --json`` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from basicsr_classpruning import load
from basicsr_classpruning.cli import main as classpruning
from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference import Restorer
from basicsr_classpruning.inference.benchmark import Row
from basicsr_classpruning.inference.benchmark_report import plot
from basicsr_classpruning.inference.class_map import candidate_colours, tint_tiles
from basicsr_classpruning.inference.metrics import compare

FIGURES = Path(__file__).resolve().parents[1] / 'docs' / 'figures'
WIDTH = 400  # pixels of each of the three pictures
CAPTION = 26
GAP = 8


def class_map_figure(restorer: Restorer, truth: np.ndarray, degradation: Degradation) -> Image.Image:
    """Input, class map and output side by side, each with a caption; ``truth`` is ``(H, W, 3)`` uint8 RGB."""
    scale = restorer.traits.scale
    truth = truth[: len(truth) // scale * scale, : truth.shape[1] // scale * scale]
    degraded = as_uint8(degradation.degrade(truth, picture_rng('photograph', 0)))
    restored, stats = restorer.restore(degraded)
    grid = restorer.start(degraded).grid
    enlarged = cv2.resize(degraded, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    colours = candidate_colours(len(restorer.traits.candidates))
    panels = (
        (enlarged, f'input: {compare(enlarged, truth, scale).psnr:.2f} dB'),
        (tint_tiles(degraded, grid, stats.class_map.ravel(), colours, scale), ''),
        (restored, f'output: {compare(restored, truth, scale).psnr:.2f} dB, {stats.saved:.0%} of the MACs saved'),
    )
    height = round(WIDTH * truth.shape[0] / truth.shape[1])
    figure = Image.new('RGB', (3 * WIDTH + 2 * GAP, height + CAPTION), 'white')
    draw = ImageDraw.Draw(figure)
    for number, (pixels, caption) in enumerate(panels):
        left = number * (WIDTH + GAP)
        figure.paste(Image.fromarray(cv2.resize(pixels, (WIDTH, height), interpolation=cv2.INTER_AREA)), (left, 0))
        draw.text((left + 2, height + 6), caption, fill='black', font_size=14)
    left = WIDTH + GAP + 2
    for name, colour in zip(restorer.traits.candidates, colours.astype(int)):
        if not stats.class_share[name]:
            continue
        draw.rectangle((left, height + 7, left + 14, height + 21), fill=tuple(colour.tolist()))
        text = f'{name} {stats.class_share[name]:.0%}'
        draw.text((left + 20, height + 6), text, fill='black', font_size=14)
        left += 34 + round(draw.textlength(text, font_size=14))
    return figure


def measure(checkpoint: str, dense: str | None, pictures: Path, degradation: str, report: Path) -> None:
    """Runs the benchmark whose rows are plotted, with one thread; ends the script where it fails."""
    models = [dense, checkpoint] if dense else [checkpoint]
    status = classpruning(['benchmark', '--models', *models, '--gt', str(pictures), '--degrade', degradation,
                           '--budgets', '0.4', '0.5', '0.6', '0.8', '1.0', '--threads', '1',
                           '--json', str(report)])  # fmt: skip
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a ClassPruning checkpoint')
    parser.add_argument('--dense', help='the dense network that it is compared with')
    parser.add_argument('--degrade', default='noise25-25', help='as in classpruning benchmark (default: noise25-25)')
    parser.add_argument('--budget', type=float, default=0.5, help='of the class map (default: 0.5)')
    parser.add_argument(
        '--photograph', default='chelsea', help="of the class map, one of the demo's (default: chelsea)"
    )
    parser.add_argument('--report', type=Path, help='rows to plot, from classpruning benchmark --json')
    args = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_demo_data(folder).test
        path = next(Path(folder).glob(f'*/{args.photograph}.png'), None)
        if path is None:
            raise UserError(f"--photograph {args.photograph}: is none of the demo's")
        truth = cv2.imread(str(path))[:, :, ::-1]
        restorer = Restorer(load(args.checkpoint), tile=64, budget=args.budget)
        if restorer.traits.channels == 1:
            raise UserError(f'{args.checkpoint}: restores grey pictures; the figures show colours')
        figure = class_map_figure(restorer, np.ascontiguousarray(truth), Degradation.parse(args.degrade))
        figure.save(FIGURES / 'class_map.jpg', quality=90, subsampling=0)
        report = args.report or Path(folder) / 'report.json'
        if args.report is None:
            measure(args.checkpoint, args.dense, pictures, args.degrade, report)
        found = json.loads(report.read_text())
    rows = [Row(**row) for row in found['rows']]
    picture = plot(rows, f'{found["pictures"]} pictures, {found["degrade"] or found["lq"]}')
    (FIGURES / 'psnr_time.png').write_bytes(picture)
    print(f'written: {FIGURES}/class_map.jpg, {FIGURES}/psnr_time.png')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        sys.exit(f'error: {error}')
