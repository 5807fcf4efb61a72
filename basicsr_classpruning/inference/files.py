"""Restores picture files: which ones, to where, and one after the other or side by side."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.folder import SUFFIXES, is_picture_name
from basicsr_classpruning.images.reading import read_picture, read_size
from basicsr_classpruning.images.writing import check_writable, write_picture, write_rows
from basicsr_classpruning.inference.class_map import draw_class_map
from basicsr_classpruning.inference.restorer import Restorer, RestoreStats
from basicsr_classpruning.inference.workers import Workers

_SMALL = 1_000_000  # pixels up to which pictures are restored side by side

Progress = Callable[[int], None]
"""Is told how many pixels of input were finished; called from several threads."""


@dataclass(frozen=True)
class FileJob:
    """One picture to be restored."""

    name: str
    """Path below the input folder, as shown to the user."""
    source: Path
    target: Path
    class_map: Path | None = None
    """Where the picture that shows the tiles' candidates goes; None if it is not wanted."""

    @property
    def finished(self) -> bool:
        """Whether all that is wanted is there."""
        return self.target.exists() and (self.class_map is None or self.class_map.exists())


@dataclass(frozen=True)
class FileResult:
    """What became of a picture."""

    job: FileJob
    stats: RestoreStats | None
    """None if it failed."""
    seconds: float
    """Wall clock, reading and writing included."""
    error: str = ''
    """One line; empty if the picture was restored."""


def find_jobs(source: str | os.PathLike, output: str | os.PathLike, class_maps: bool) -> list[FileJob]:
    """Lists the pictures of a file or folder (with its sub-folders) and where their results go.

    A folder's pictures keep their names and sub-folders. What lies in the output folder is not taken for input.

    Raises:
        UsageError: there is no picture, or a result would take the place of its original.
    """
    source, output = Path(source), Path(output)
    if output.exists() and not output.is_dir():
        raise UsageError(f'--output {output}: is not a folder')
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise UsageError(f'--output {output}: is the input folder; results would replace the originals')
        pictures = _pictures_below(source, output.resolve())
        if not pictures:
            raise UsageError(f'{source}: no pictures in it (looked for {", ".join(SUFFIXES)})')
        names = [picture.relative_to(source) for picture in pictures]
    elif source.exists():
        if output.resolve() == source.resolve().parent:
            raise UsageError(f'--output {output}: is the folder of the input; the result would replace the original')
        pictures, names = [source], [Path(source.name)]
    else:
        raise UsageError(f'{source}: no such file or folder')
    jobs = [FileJob(str(name), picture, output / name) for name, picture in zip(names, pictures)]
    return _with_class_maps(jobs) if class_maps else jobs


def _pictures_below(folder: Path, output: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if (Path(root) / name).resolve() != output)
        found += [Path(root) / name for name in sorted(files) if is_picture_name(name)]
    return found


def _with_class_maps(jobs: list[FileJob]) -> list[FileJob]:
    """Adds ``NAME_classes.png``; where that would name two files, ``NAME.SUFFIX_classes.png``."""
    targets = {job.target for job in jobs}
    short = {job: job.target.with_name(f'{job.target.stem}_classes.png') for job in jobs}
    count = Counter(short.values())
    result = []
    for job in jobs:
        path = short[job]
        if count[path] > 1 or path in targets:
            path = job.target.with_name(f'{job.target.name}_classes.png')
        result.append(replace(job, class_map=path))
    return result


def count_pixels(job: FileJob) -> int:
    """Pixels of a picture, from its header; 0 if it cannot be read."""
    try:
        height, width = read_size(job.source)
    except UserError:
        return 0
    return height * width


def restore_files(
    restorer: Restorer, jobs: Iterable[FileJob], max_pixels: int, progress: Progress
) -> Iterator[FileResult]:
    """Restores pictures; yields a result for each, in no particular order. A failure does not stop the others.

    Small pictures are restored side by side, as one of them does not keep all threads busy; large ones one by one, so
    that memory stays bounded.
    """
    small: list[FileJob] = []
    large: list[FileJob] = []
    for job in jobs:
        (small if count_pixels(job) <= _SMALL else large).append(job)

    def restore(job: FileJob) -> FileResult:
        return _try_restoring(restorer, job, max_pixels, progress)

    yield from Workers(restorer.workers.count).map(restore, small)
    yield from map(restore, large)


def _try_restoring(restorer: Restorer, job: FileJob, max_pixels: int, progress: Progress) -> FileResult:
    start = time.perf_counter()
    try:
        stats = restore_file(restorer, job, max_pixels, progress)
    except UserError as error:
        return FileResult(job, None, time.perf_counter() - start, str(error))
    except (MemoryError, RuntimeError) as error:
        return FileResult(job, None, time.perf_counter() - start, str(_failed(job, error)))
    return FileResult(job, stats, time.perf_counter() - start)


def _failed(job: FileJob, error: Exception) -> UserError:
    """A lack of memory, which torch reports as a RuntimeError, or another failure of the network, in one line."""
    return UserError(f'{job.source}: {(str(error) or "not enough memory").splitlines()[0]}')


def restore_file(restorer: Restorer, job: FileJob, max_pixels: int, progress: Progress) -> RestoreStats:
    """Restores one picture file; its results appear whole or not at all. Raises UserError."""
    picture = read_picture(job.source, max_pixels)
    scale = restorer.traits.scale
    height, width = picture.pixels.shape[:2]
    check_writable(picture.encoding, height * scale, width * scale, job.target)
    _make_folder(job.target.parent)
    restoration = restorer.start(picture.pixels)
    if job.class_map is not None:
        labels = restorer.traits.candidates or ('dense',)
        write_picture(job.class_map, draw_class_map(picture, restoration.grid, restoration.classes, labels))

    def rows() -> Iterator[np.ndarray]:
        done = 0
        try:
            for band in restoration.bands():
                yield band if picture.alpha is None else _with_alpha(band, picture.alpha, done, scale)
                done += len(band)
                progress(len(band) // scale * width)
        except RuntimeError as error:  # of the network: not to be taken for one of writing
            raise _failed(job, error) from None

    write_rows(job.target, picture.encoding, height * scale, width * scale, rows())
    return restoration.stats()


def _with_alpha(band: np.ndarray, alpha: np.ndarray, top: int, scale: int) -> np.ndarray:
    """Adds the rows of alpha from ``top`` on, enlarged bicubically, to a band ``(h, W, C)`` of the result."""
    first, last = top // scale, (top + len(band)) // scale
    if scale == 1:
        rows = alpha[first:last]
    else:
        above = min(first, 4)  # more than bicubic interpolation reaches
        part = np.ascontiguousarray(alpha[first - above : last + 4])
        size = (alpha.shape[1] * scale, len(part) * scale)
        rows = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)[above * scale :][: len(band)]
    return np.concatenate([band, rows[..., None]], axis=2)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{folder}: could not be made ({error.strerror})') from None
