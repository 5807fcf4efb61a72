"""Restores picture files: which ones, to where, and one after the other or side by side."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images import reading
from basicsr_classpruning.images.folder import READ_ONLY_SUFFIXES, SUFFIXES, Listing, list_below
from basicsr_classpruning.images.picture import Picture
from basicsr_classpruning.images.reading import PictureFile, open_picture
from basicsr_classpruning.images.writing import (
    Rows,
    check_writable,
    result_encoding,
    write_picture,
    write_pictures,
    write_rows,
)
from basicsr_classpruning.inference.class_map import draw_class_map
from basicsr_classpruning.inference.restorer import Restoration, Restorer, RestoreStats
from basicsr_classpruning.inference.shared_budget import Routing, Survey
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
    note: str = ''
    """What of the file was not restored; empty if all was."""


def find_jobs(source: str | os.PathLike, output: str | os.PathLike, class_maps: bool) -> list[FileJob]:
    """Lists the pictures of a file or folder (with its sub-folders) and where their results go.

    A folder's pictures keep their names and sub-folders; the results of formats that are only read are ``NAME.png``.
    What lies in the output folder is not taken for input.

    Raises:
        UsageError: there is no picture, or a result would take the place of its original.
    """
    source, output = Path(source), Path(output)
    if output.exists() and not output.is_dir():
        raise UsageError(f'{output}: is not a folder', key='output')
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise UsageError(f'{output}: is the input folder; results would replace the originals', key='output')
        pictures = _list(source, output).pictures
        if not pictures:
            raise UsageError(f'{source}: no pictures in it (looked for {", ".join(SUFFIXES)})')
        names = [picture.relative_to(source) for picture in pictures]
    elif source.exists():
        if output.resolve() == source.resolve().parent:
            text = f'{output}: is the folder of the input; the result would replace the original'
            raise UsageError(text, key='output')
        pictures, names = [source], [Path(source.name)]
    else:
        raise UsageError(f'{source}: no such file or folder')
    targets = _result_names(names)
    jobs = [FileJob(str(name), picture, output / targets[name]) for name, picture in zip(names, pictures)]
    return _with_class_maps(jobs) if class_maps else jobs


def find_skipped(source: str | os.PathLike, output: str | os.PathLike) -> list[str]:
    """Files of an input folder that are no pictures by their names, as shown to the user; none for a single file."""
    source = Path(source)
    if not source.is_dir():
        return []
    return [str(path.relative_to(source)) for path in _list(source, Path(output)).skipped]


def _list(source: Path, output: Path) -> Listing:
    return list_below(source, without=output.resolve())


def _result_names(names: list[Path]) -> dict[Path, Path]:
    """What the result of each picture is called. ``x.gif`` becomes ``x.png``, or ``x.gif.png`` if there is another."""
    read_only = [name for name in names if name.suffix.lower() in READ_ONLY_SUFFIXES]
    result = {name: name for name in names if name not in set(read_only)}
    taken = Counter(name.with_suffix('.png') for name in read_only) + Counter(list(result))
    for name in read_only:
        short = name.with_suffix('.png')
        result[name] = short if taken[short] == 1 else name.with_name(f'{name.name}.png')
        if taken[result[name]] > (result[name] == short):
            raise UsageError(f'{name}: its result would be called {result[name]}, as that of another; rename one')
    return result


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
    """Pixels of a file's pictures, from its headers; 0 if it cannot be read."""
    try:
        return reading.count_pixels(job.source)
    except UserError:
        return 0


def restore_files(
    restorer: Restorer, jobs: Sequence[FileJob], max_pixels: int, progress: Progress, together: bool = False
) -> Iterator[FileResult]:
    """Restores pictures; yields a result for each, in no particular order. A failure does not stop the others.

    Small pictures are restored side by side, as one of them does not keep all threads busy; large ones one by one, so
    that memory stays bounded. With ``together``, all pictures share the budget: all are read and classified first.
    """
    routings = _route_together(restorer, jobs, max_pixels) if together else {}
    small: list[FileJob] = []
    large: list[FileJob] = []
    for job in jobs:
        (small if count_pixels(job) <= _SMALL else large).append(job)

    def restore(job: FileJob) -> FileResult:
        return _try_restoring(restorer, job, max_pixels, progress, routings.get(job, []))

    yield from Workers(restorer.workers.count).map(restore, small)
    yield from map(restore, large)


def _route_together(restorer: Restorer, jobs: Sequence[FileJob], max_pixels: int) -> dict[FileJob, list[Routing]]:
    """Routes all pictures of the files. Files that fail are left out: restoring them says why."""
    surveys: dict[FileJob, list[Survey]] = {}
    for job in jobs:
        with (
            contextlib.suppress(UserError, MemoryError, RuntimeError),
            open_picture(job.source, max_pixels) as file,
        ):
            surveys[job] = [restorer.start(picture.pixels).survey() for picture in file.pictures()]
    if not surveys:
        return {}
    found = iter(restorer.route_together([survey for each in surveys.values() for survey in each]))
    return {job: [next(found) for _ in each] for job, each in surveys.items()}


def _try_restoring(
    restorer: Restorer, job: FileJob, max_pixels: int, progress: Progress, routings: Sequence[Routing]
) -> FileResult:
    start = time.perf_counter()
    try:
        stats, note = restore_file(restorer, job, max_pixels, progress, routings)
    except UserError as error:
        return FileResult(job, None, time.perf_counter() - start, str(error))
    except (MemoryError, RuntimeError) as error:
        return FileResult(job, None, time.perf_counter() - start, str(_failed(job, error)))
    return FileResult(job, stats, time.perf_counter() - start, note=note)


def _failed(job: FileJob, error: Exception) -> UserError:
    """A lack of memory, which torch reports as a RuntimeError, or another failure of the network, in one line."""
    return UserError(f'{job.source}: {(str(error) or "not enough memory").splitlines()[0]}')


def restore_file(
    restorer: Restorer, job: FileJob, max_pixels: int, progress: Progress, routings: Sequence[Routing] = ()
) -> tuple[RestoreStats, str]:
    """Restores one picture file, each of its pages or frames; its results appear whole or not at all.

    ``routings`` are those of its pictures, where they were routed before.

    Returns what it cost, and what of the file was not restored. Raises UserError.
    """
    scale = restorer.info.scale
    with open_picture(job.source, max_pixels) as file:
        restored = _Restored(restorer, job, file, progress, routings)
        if len(file) == 1:
            (rows,) = restored.pictures()
            write_rows(job.target, rows.encoding, rows.height, rows.width, rows.bands)
        else:
            animation = file.animation()
            pixels = sum(height * width for height, width in file.sizes) * scale**2
            write_pictures(job.target, restored.pictures(), animation, pixels)
        return _together(restored.stats), file.note


class _Restored:
    """The pictures of a file, restored as their rows are consumed."""

    def __init__(
        self, restorer: Restorer, job: FileJob, file: PictureFile, progress: Progress, routings: Sequence[Routing]
    ) -> None:
        self._restorer, self._job, self._file, self._progress = restorer, job, file, progress
        self._routings = routings
        self.stats: list[RestoreStats] = []
        """Of each picture that is finished."""

    def pictures(self) -> Iterator[Rows]:
        """Yields one picture after the other. A class map is drawn of the first."""
        job, scale = self._job, self._restorer.info.scale
        for number, picture in enumerate(self._file.pictures()):
            height, width = (side * scale for side in picture.pixels.shape[:2])
            encoding = result_encoding(picture.encoding)
            check_writable(encoding, height, width, job.target)
            _make_folder(job.target.parent)
            routing = self._routings[number] if self._routings else None
            restoration = self._restorer.start(picture.pixels, routing=routing)
            if job.class_map is not None and number == 0:
                labels = self._restorer.info.candidates or ('dense',)
                write_picture(job.class_map, draw_class_map(picture, restoration.parts, restoration.classes, labels))
            yield Rows(encoding, height, width, self._bands(picture, restoration))

    def _bands(self, picture: Picture, restoration: Restoration) -> Iterator[np.ndarray]:
        done, scale, width = 0, self._restorer.info.scale, picture.pixels.shape[1]
        try:
            for band in restoration.bands():
                yield band if picture.alpha is None else _with_alpha(band, picture.alpha, done, scale)
                done += len(band)
                self._progress(len(band) // scale * width)
        except RuntimeError as error:  # of the network: not to be taken for one of writing
            raise _failed(self._job, error) from None
        self.stats.append(restoration.stats())


def _together(stats: list[RestoreStats]) -> RestoreStats:
    """What all pictures of a file cost; the map of candidates is the first one's."""
    if len(stats) == 1:
        return stats[0]
    tiles = sum(one.tiles for one in stats)

    def mean(values: Iterable[float]) -> float:
        return sum(value * one.tiles for value, one in zip(values, stats)) / tiles

    return replace(
        stats[0],
        average_macs=mean(one.average_macs for one in stats),
        macs_dense=mean(one.macs_dense for one in stats),
        spent=mean(one.spent for one in stats),
        dense=sum(one.dense for one in stats),
        enough=all(one.enough for one in stats),
        class_share={name: mean(one.class_share[name] for one in stats) for name in stats[0].class_share},
        tiles=tiles,
        pixels=sum(one.pixels for one in stats),
        seconds=sum(one.seconds for one in stats),
    )


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
        if np.issubdtype(rows.dtype, np.floating):  # whole numbers are clipped by OpenCV
            rows = rows.clip(0, 1)
    return np.concatenate([band, rows[..., None]], axis=2)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{folder}: could not be made ({error.strerror})') from None
