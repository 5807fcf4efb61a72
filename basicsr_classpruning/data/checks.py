"""Looks at data sets before a run begins: what would stop it at some later step is found at once, and named.

BasicSR's data sets take every file of a folder for a picture, and say by assertions, at the step that needs a picture,
that something is wrong with it. The checks go by BasicSR's conventions (``paths`` of a data set, ``lq`` and ``gt`` of a
sample), so they hold for any data set of its registry.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from os import path as osp
from typing import Any

import cv2
import lmdb
import numpy as np
from basicsr.utils import scandir
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image

from basicsr_classpruning.data.seeded_dataset import path_of, seeded
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.folder import is_picture_name

_MOD_CROP = 12  # degraded pictures of benchmark sets were made from sides cropped to multiples of up to 12
_TURNED = range(5, 9)  # values of EXIF's orientation that exchange height and width
_ORIENTATION = 0x0112
_NOT_OF_OPENCV = ('.gif', '.avif', '.tga')  # with which BasicSR's own data sets read
_END_MARKS = {'PNG': b'IEND', 'JPEG': b'\xff\xd9'}

Size = tuple[int, int]


@dataclass(frozen=True)
class Needs:
    """What a run wants of its data sets."""

    scale: int
    channels: int | None
    """Channels of the network's input; None where they are not known."""
    lq: bool
    """Whether a sample must bring the degraded picture; some models degrade by themselves."""
    gt: str | None
    """What a sample's clean picture is needed for, in words; None where it is not."""
    crops: bool
    """Whether the model measures an output that is larger than the clean picture in their common part."""


def _is_read(path: str) -> bool:
    """Whether BasicSR's own data sets, which read with OpenCV, take a file of this name for a picture."""
    return is_picture_name(os.path.basename(path)) and not path.lower().endswith(_NOT_OF_OPENCV)


@contextmanager
def pictures_only() -> Iterator[list[str]]:
    """While it lasts, BasicSR's data sets do not see files of a folder that are no pictures by their names.

    Gives the names of those files, as they are passed over.
    """
    skipped: list[str] = []

    def scan(*args: Any, **kwargs: Any) -> Iterator[str]:
        for path in sorted(scandir(*args, **kwargs)):  # the same order, so the same samples, on every file system
            if _is_read(path):
                yield path
            else:
                skipped.append(path)

    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith('basicsr.data.') and getattr(module, 'scandir', None) is scandir
    ]
    with ExitStack() as stack:
        for module in modules:
            module.scandir = scan  # type: ignore[attr-defined]
            stack.callback(setattr, module, 'scandir', scandir)
        yield skipped


def check_dataset(options: Mapping[str, Any], key: str, needs: Needs, seed: int) -> list[str]:
    """Builds a data set, looks at the header of every picture, and makes one sample.

    Args:
        options: of the data set, filled in, with ``phase`` and ``scale``.
        key: its place in the options file, e.g. ``datasets.train``.
        needs: what the run wants of it.
        seed: of the sample's random numbers. The process's own generators are left as they were.

    Returns:
        Lines to be logged: what was passed over, what will be cropped.

    Raises:
        UsageError: it does not fit the options. One line with the key and, where there is one, the file.
        UserError: a picture is damaged.
    """
    _check_pairs_of_names(options, key)
    with pictures_only() as skipped:
        dataset = _built(options, key)
    notices = []
    if skipped:
        names = ', '.join(sorted(skipped)[:3]) + (', …' if len(skipped) > 3 else '')
        notices.append(f'{key}: {_count(skipped, "file")} passed over, no picture by its name: {names}')
    if not len(dataset):
        raise UsageError(f'{key}: {options["type"]} finds no pictures')
    notices += _check_sizes(dataset, options, key, needs)
    _check_sample(dataset, options, key, needs, seed)
    return notices


def _count(things: Sequence[Any], word: str) -> str:
    return f'{len(things)} {word}{"s" * (len(things) != 1)}'


def describe(error: BaseException) -> str:
    """An exception of foreign code in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    text = ' '.join(str(part) for part in error.args) if error.args else ''
    lines = text.strip().splitlines()
    name = type(error).__name__
    if not lines:
        return name
    return lines[0] if isinstance(error, AssertionError) else f'{name}: {lines[0]}'


def _built(options: Mapping[str, Any], key: str) -> Any:
    try:
        return DATASET_REGISTRY.get(options['type'])(deepcopy(dict(options)))
    except UserError:
        raise
    except Exception as error:  # whatever the data set's class raises
        raise _refusal(error, options, key) from None


def _refusal(error: Exception, options: Mapping[str, Any], key: str, path: str = '') -> UsageError:
    """One line for what a data set's class raised; a missing option is called that."""
    if isinstance(error, KeyError) and error.args and error.args[0] not in options:
        return UsageError(f'{key}.{error.args[0]}: is missing; {options["type"]} needs it')
    where = f'{path}: ' if path else ''
    return UsageError(f'{key}: {where}{options["type"]} refuses it: {describe(error)}')


# ------------------------------------------------------------------------- names


def _is_basicsr(options: Mapping[str, Any]) -> bool:
    return DATASET_REGISTRY.get(options['type']).__module__.startswith('basicsr.')


def _check_pairs_of_names(options: Mapping[str, Any], key: str) -> None:
    """Names the first picture without its other half, which BasicSR tells from two different numbers of files."""
    roots = [options.get(name) for name in ('dataroot_lq', 'dataroot_gt')]
    if not all(isinstance(root, str) for root in roots) or not _is_basicsr(options):
        return
    degraded, clean = (str(root) for root in roots)
    if (options.get('io_backend') or {}).get('type') == 'lmdb':
        keys = {root: _lmdb_keys(root, key) for root in (degraded, clean)}
        for root, other in ((degraded, clean), (clean, degraded)):
            for name in sorted(keys[root] - keys[other]):
                raise UsageError(f'{key}: the key {name!r} of {root} is not in {other}; both LMDBs need the same keys')
        return
    if options.get('meta_info_file') or options.get('meta_info'):
        return  # a list says which files belong together
    names = {root: {path for path in scandir(root) if _is_read(path)} for root in (degraded, clean)}
    template = options.get('filename_tmpl') or '{}'
    wanted = {}
    for name in sorted(names[clean]):
        stem, suffix = osp.splitext(osp.basename(name))
        wanted[f'{template.format(stem)}{suffix}'] = name
    for name, partner in wanted.items():
        if name not in names[degraded]:
            raise UsageError(
                f'{key}.dataroot_lq: {osp.join(degraded, name)} is missing, which belongs to '
                f'{osp.join(clean, partner)} (filename_tmpl {template!r}, same suffix)'
            )
    for name in sorted(names[degraded] - wanted.keys()):
        raise UsageError(
            f'{key}.dataroot_gt: {osp.join(degraded, name)} has no clean picture in {clean} '
            f'(filename_tmpl {template!r}, same suffix)'
        )


def _lmdb_keys(root: str, key: str) -> set[str]:
    """Keys of an LMDB, as BasicSR takes them from its list."""
    path = osp.join(root, 'meta_info.txt')
    try:
        with open(path, encoding='utf-8') as file:
            return {line.split('.')[0] for line in file}
    except (OSError, UnicodeDecodeError):
        raise UsageError(f'{key}: {path} cannot be read; {root} is no LMDB in the format of BasicSR') from None


# ----------------------------------------------------------------------- headers


def _check_sizes(dataset: Any, options: Mapping[str, Any], key: str, needs: Needs) -> list[str]:
    """Reads the header of every picture, and compares the sizes of pairs. Returns a line where some will be cropped."""
    uneven = []
    with _opener(dataset, options, key) as header:
        for entry in _paths(dataset, options):
            if not isinstance(entry, Mapping):
                header('', entry)
                continue
            sizes = {name[: -len('_path')]: header(name[: -len('_path')], path) for name, path in entry.items()}
            if not {'lq', 'gt'} <= sizes.keys() or not _is_basicsr(options):
                continue  # a user's own data set may do with its pictures what it likes
            text = f'{entry["gt_path"]} is {_shown(sizes["gt"])}, {entry["lq_path"]} {_shown(sizes["lq"])}'
            if options['phase'] == 'train':
                _check_training_pair(sizes, options, key, text, needs.scale)
            elif not _fits(sizes, needs.scale):
                raise UsageError(f'{key}: {text}; not scale {needs.scale}')
            elif any(g != size * needs.scale for g, size in zip(sizes['gt'], sizes['lq'])):
                if not needs.crops and any(g < size * needs.scale for g, size in zip(sizes['gt'], sizes['lq'])):
                    raise UsageError(
                        f'{key}: {text}; scale {needs.scale} does not fit exactly, which BasicSR cannot measure; '
                        'model_type GuardedSRModel measures the common part'
                    )
                uneven.append(text)
    if not uneven:
        return []
    more = f', and {len(uneven) - 1} more' * (len(uneven) > 1)
    return [f'{key}: measured in the common part, as scale {needs.scale} does not fit exactly: {uneven[0]}{more}']


def _check_training_pair(sizes: dict[str, Size], options: Mapping[str, Any], key: str, text: str, scale: int) -> None:
    if any(gt != lq * scale for gt, lq in zip(sizes['gt'], sizes['lq'])):
        raise UsageError(f'{key}: {text}; not scale {scale}')
    if min(sizes['gt']) < (options.get('gt_size') or 0):
        raise UsageError(f'{key}.gt_size: {options["gt_size"]} is not allowed; {text}')


def _fits(sizes: dict[str, Size], scale: int) -> bool:
    """Whether a validation pair is of this scale, but for borders that were rounded up or cut off."""
    return all(
        -scale < gt - lq * scale < max(scale, _MOD_CROP) and abs(gt / lq - scale) < 0.5
        for gt, lq in zip(sizes['gt'], sizes['lq'])
    )


def _shown(size: Size) -> str:
    return f'{size[1]}x{size[0]}'


def _paths(dataset: Any, options: Mapping[str, Any]) -> Sequence[Any]:
    """Paths of pictures, or mappings of them, as far as the data set tells; of an LMDB its keys."""
    paths = getattr(dataset, 'paths', None)
    if paths is None and (options.get('io_backend') or {}).get('type', 'disk') == 'disk':
        paths = getattr(getattr(dataset, 'pictures', None), 'paths', None)
    fine = isinstance(paths, Sequence) and all(isinstance(path, (str, Mapping)) for path in paths)
    return paths if fine and paths is not None else ()


@contextmanager
def _opener(dataset: Any, options: Mapping[str, Any], key: str) -> Iterator[Callable[[str, str], Size]]:
    """Gives a function that reads a picture's size, given which half of a pair it is and its path or LMDB key."""
    backend = options.get('io_backend') or {}
    if backend.get('type') != 'lmdb':
        yield lambda _, path: _read_size(path, key)
        return
    told = getattr(dataset, 'io_backend_opt', {})
    roots = dict(zip(told.get('client_keys', ()), told.get('db_paths', ())))
    with ExitStack() as stack:
        environments = {}
        for client, root in roots.items():
            try:
                environments[client] = stack.enter_context(
                    lmdb.open(root, readonly=True, lock=False, readahead=False, create=False)
                )
            except lmdb.Error as error:
                raise UsageError(f'{key}: {root} cannot be read: {error}') from None

        def header(client: str, name: str) -> Size:
            client = client or next(iter(environments))
            with environments[client].begin() as transaction:
                content = transaction.get(name.encode())
            where = osp.join(roots[client], name)
            if content is None:
                raise UserError(f'{key}: {where}: in meta_info.txt, but not in the LMDB')
            return _size(content, where, key)

        yield header


def _read_size(path: str, key: str) -> Size:
    try:
        with open(path, 'rb') as file:
            return _size(file, path, key)
    except OSError as error:
        raise UserError(f'{key}: {path}: {error.strerror or error}') from None


def _size(source: Any, name: str, key: str) -> Size:
    """Height and width of a picture as OpenCV decodes it, from its header where that is enough."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    end = file.seek(0, io.SEEK_END)
    if not end:
        raise UserError(f'{key}: {name}: is empty, no picture')
    file.seek(max(end - 64, 0))
    tail = file.read()
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large pictures and odd EXIF blocks
            with Image.open(file) as image:
                if _END_MARKS.get(image.format or '', b'') not in tail:
                    image.load()  # cut off, or something behind its end
                size = image.size[::-1]
                # Pillow would decode a PNG that has none in its header, in case that there is one behind.
                has_exif = image.format != 'PNG' or 'exif' in image.info
                turned = has_exif and image.getexif().get(_ORIENTATION) in _TURNED
    except Exception:  # Pillow's readers raise what they like
        return _decoded_size(file, name, key)
    return (size[1], size[0]) if turned else size


def _decoded_size(file: Any, name: str, key: str) -> Size:
    """For what Pillow cannot read: OpenCV knows some formats more, and has the last word."""
    file.seek(0)
    try:
        picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise UserError(f'{key}: {name}: this picture does not decode')
    return picture.shape[:2]


# ------------------------------------------------------------------------ sample


def _check_sample(dataset: Any, options: Mapping[str, Any], key: str, needs: Needs, seed: int) -> None:
    path = path_of(_paths(dataset, options), 0)
    try:
        with seeded(seed, 0):
            sample = dataset[0]
    except UserError:
        raise
    except Exception as error:  # whatever the data set's class raises
        raise _refusal(error, options, key, path) from None
    if not isinstance(sample, Mapping):
        return
    kind, lq, gt = options['type'], sample.get('lq'), sample.get('gt')
    if lq is None and needs.lq:
        raise UsageError(
            f'{key}.type: {kind} brings no degraded pictures (lq), so a model has to degrade the clean ones; '
            'model_type ClassPruningRealESRNetModel (RealESRNetModel for a dense network), or a data set with lq'
        )
    if gt is None and needs.gt:
        raise UsageError(f'{key}.type: {kind} brings no clean pictures (gt), which {needs.gt} needs')
    for name, value in (('lq', lq), ('gt', gt)):
        if needs.channels is not None and value is not None and value.ndim == 3 and len(value) != needs.channels:
            raise UsageError(
                f'{key}: {path}: {name} has {_count(value, "channel")}, but the network takes {needs.channels}'
            )
    if options['phase'] == 'train' and lq is not None and gt is not None and lq.ndim == gt.ndim == 3:
        sizes = [tuple(value.shape[1:]) for value in (gt, lq)]
        if any(g != size * needs.scale for g, size in zip(*sizes)):
            text = f'gt is {_shown(sizes[0])}, lq {_shown(sizes[1])}'
            raise UsageError(f'{key}: {path}: {text}; not scale {needs.scale}')
