"""BMP, from the bottom of the file upwards."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import numpy as np

from basicsr_classpruning.images.encoders.layout import Layout


def write_bmp(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    grey = layout.channels == 1
    stored = 1 if grey else layout.channels if layout.channels != 2 else 4
    pitch = (layout.width * stored + 3) // 4 * 4
    palette = b''.join(bytes((i, i, i, 0)) for i in range(256)) if grey else b''
    # The version-4 header, needed for alpha only, adds colour masks: red, green, blue, alpha.
    masks = struct.pack('<IIII4s36x12x', 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b'BGRs') if stored == 4 else b''
    start, size = 54 + len(masks) + len(palette), pitch * layout.height
    stream.write(struct.pack('<2sIII', b'BM', start + size, 0, start))
    compression = 3 if stored == 4 else 0
    density = (2835, 2835)  # 72 pixels an inch
    if layout.resolution and layout.resolution.unit != 'none':
        x, y, _ = layout.resolution.per('metre')
        density = (round(x), round(y))
    info = (40 + len(masks), layout.width, layout.height, 1, 8 * stored, compression, size, *density, 256 * grey, 0)
    stream.write(struct.pack('<IiiHHIIiiII', *info) + masks + palette)
    bottom = layout.height
    for strip in strips:  # stored from the bottom row to the top one
        bottom -= len(strip)
        if layout.channels == 2:
            strip = strip[..., [0, 0, 0, 1]]
        elif layout.channels >= 3:
            strip = strip[..., [2, 1, 0, 3][:stored]]
        data = np.zeros((len(strip), pitch), np.uint8)
        data[:, : layout.width * stored] = strip[::-1].reshape(len(strip), -1)
        stream.seek(start + bottom * pitch)
        stream.write(data.tobytes())
