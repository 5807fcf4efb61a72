"""WebP, whose encoder needs the whole picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from basicsr_classpruning.images.encoders.layout import QUALITY, Layout

SIDE_LIMIT = 16_383


def write_webp(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    pixels = np.empty((layout.height, layout.width, layout.channels), np.uint8)
    top = 0
    for strip in strips:
        pixels[top : top + len(strip)] = strip
        top += len(strip)
    if layout.channels <= 2:
        pixels = pixels[..., [0, 0, 0, 1][: layout.channels + 2]]
    Image.fromarray(pixels).save(
        stream,
        'WEBP',
        lossless=layout.encoding.lossless,
        quality=QUALITY,
        exact=True,
        icc_profile=layout.encoding.icc or b'',
    )
