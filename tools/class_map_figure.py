#!/usr/bin/env python
"""Makes the README's picture of a ClassPruning denoiser or enlarger at work on one of scikit-image's photographs.

    python tools/class_map_figure.py CHECKPOINT [--degrade bicubic2] [--budget 0.3] [--photograph rocket]

It is ``docs/figures/class_map.jpg``: a degraded photograph, the candidate of each patch, and the restored photograph.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from basicsr_classpruning import load
from basicsr_classpruning.benchmark.metrics import compare
from basicsr_classpruning.data.degradations import Degradation, as_uint8, picture_rng
from basicsr_classpruning.data.demo import make_demo_data
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference import Restorer
from basicsr_classpruning.inference.class_map import candidate_colours, tint_tiles

FIGURE = Path(__file__).resolve().parents[1] / 'docs' / 'figures' / 'class_map.jpg'
WIDTH = 400  # pixels of each of the three pictures
CAPTION = 26
GAP = 8


def class_map_figure(restorer: Restorer, truth: np.ndarray, degradation: Degradation) -> Image.Image:
    """Input, class map and output side by side, each with a caption; ``truth`` is ``(H, W, 3)`` uint8 RGB."""
    scale = restorer.info.scale
    truth = truth[: len(truth) // scale * scale, : truth.shape[1] // scale * scale]
    degraded = as_uint8(degradation.degrade(truth, picture_rng('photograph', 0)))
    restored, stats = restorer.restore(degraded)
    grid = restorer.start(degraded).parts
    enlarged = cv2.resize(degraded, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    colours = candidate_colours(len(restorer.info.candidates))
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
    for name, colour in zip(restorer.info.candidates, colours.astype(int)):
        if not stats.class_share[name]:
            continue
        draw.rectangle((left, height + 7, left + 14, height + 21), fill=tuple(colour.tolist()))
        text = f'{name} {stats.class_share[name]:.0%}'
        draw.text((left + 20, height + 6), text, fill='black', font_size=14)
        left += 34 + round(draw.textlength(text, font_size=14))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a ClassPruning checkpoint')
    parser.add_argument('--degrade', default='bicubic2', help='as in classpruning benchmark (default: bicubic2)')
    parser.add_argument('--budget', type=float, default=0.3, help='of the class map (default: 0.3)')
    parser.add_argument('--photograph', default='rocket', help="of the class map, one of the demo's (default: rocket)")
    args = parser.parse_args()
    FIGURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make_demo_data(folder)
        path = next(Path(folder).glob(f'*/{args.photograph}.png'), None)
        if path is None:
            raise UserError(f"--photograph {args.photograph}: is none of the demo's")
        truth = cv2.imread(str(path))
        assert truth is not None, path
        restorer = Restorer(load(args.checkpoint), patch=16, budget=args.budget)
        if restorer.info.channels == 1:
            raise UserError(f'{args.checkpoint}: restores grey pictures; the figures show colours')
        degradation = Degradation.parse(args.degrade)
        if degradation.scale != restorer.info.scale:
            raise UserError(f'--degrade {args.degrade}: {args.checkpoint} enlarges {restorer.info.scale} times')
        figure = class_map_figure(restorer, np.ascontiguousarray(truth[:, :, ::-1]), degradation)
        figure.save(FIGURE, quality=90, subsampling=0)
    print(f'written: {FIGURE}')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        sys.exit(f'error: {error}')
