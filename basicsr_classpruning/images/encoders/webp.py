"""WebP, still and animated. Its encoder needs whole pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import Image

from basicsr_classpruning.images.encoders.layout import QUALITY, Frame, Layout
from basicsr_classpruning.images.picture import Animation

SIDE_LIMIT = 16_383


def write_webp(stream: IO[bytes], layout: Layout, strips: Iterator[np.ndarray]) -> None:
    """Writes a picture."""
    Image.fromarray(_whole(layout, strips)).save(stream, 'WEBP', **_options(layout))


def write_animated_webp(stream: IO[bytes], frames: Iterator[Frame], animation: Animation) -> None:
    """Writes an animation; one frame is in memory at a time."""
    source = _Frames(frames, len(animation.durations))
    source.save(
        stream,
        'WEBP',
        save_all=True,
        duration=[round(duration) for duration in animation.durations],
        loop=animation.plays,
        **_options(source.layout),
    )


def _options(layout: Layout) -> dict[str, Any]:
    return {
        'lossless': layout.encoding.lossless,
        'quality': QUALITY,
        'exact': True,
        'icc_profile': layout.encoding.icc or b'',
        'exif': layout.exif or b'',
        'xmp': layout.xmp or b'',
    }


def _whole(layout: Layout, strips: Iterator[np.ndarray]) -> np.ndarray:
    """``(H, W, 3 or 4)``: WebP has no grey."""
    pixels = np.empty((layout.height, layout.width, layout.channels), np.uint8)
    top = 0
    for strip in strips:
        pixels[top : top + len(strip)] = strip
        top += len(strip)
    return pixels[..., [0, 0, 0, 1][: layout.channels + 2]] if layout.channels <= 2 else pixels


class _Frames(Image.Image):
    """An animation as Pillow's encoders take it, whose frames are made when they are asked for, in order."""

    def __init__(self, frames: Iterator[Frame], count: int) -> None:
        super().__init__()
        self._frames, self._number = frames, -1
        self.n_frames = count
        self.is_animated = True
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Goes to a frame: the one that is shown, or the next."""
        if frame == self._number + 1:
            following = next(self._frames)
            self.layout = following.layout
            image = Image.fromarray(_whole(following.layout, following.strips))
            self.im, self._mode, self._size = image.im, image.mode, image.size
            self._number = frame

    def tell(self) -> int:
        """The number of the frame that is shown."""
        return self._number
