"""``classpruning restore``: restores a picture or a folder of pictures."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.common import (
    add_model_arguments,
    add_run_arguments,
    check_outputs,
    load_model,
    with_flags,
    write_json,
)
from basicsr_classpruning.errors import UsageError

if TYPE_CHECKING:
    from basicsr_classpruning.inference.files import FileJob, FileResult
    from basicsr_classpruning.inference.restorer import Restorer
    from basicsr_classpruning.routing.network import RoutedNetwork


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'restore',
        help='restore a picture or a folder of pictures',
        description='Restores pictures (PNG, JPEG, TIFF, WebP, BMP; 8 and 16 bit, TIFF also of floats; grey or colour, '
        'with alpha) patch by patch, each with the candidate that it needs. Results keep names, sub-folders, '
        'format, bit depth, and the resolution, EXIF, XMP and colour profile that the format can hold. GIF, AVIF, PPM '
        'and TGA are read, and their results are PNG. Frames of animations and pages of TIFF are restored one by one. '
        'Finished pictures are skipped, so an interrupted run can simply be started again.',
    )
    parser.add_argument('input', metavar='INPUT', help='a picture, or a folder of pictures with its sub-folders')
    parser.add_argument('--model', metavar='FILE', required=True, help='a ClassPruning or dense checkpoint')
    parser.add_argument('--output', metavar='DIR', required=True, help='folder of the results; made if it is not there')
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        '--budget', type=float, metavar='SHARE',
        help='most that each picture may cost on average, as a share of the dense network, e.g. 0.6; no more is spent '
        'than helps (default: the classifier decides)',
    )  # fmt: skip
    parser.add_argument(
        '--budget-in', choices=('macs', 'time'), default='macs',
        help='what the budget counts: MACs (default), or time, which is measured once on this machine and kept',
    )  # fmt: skip
    parser.add_argument(
        '--budget-over', choices=('picture', 'folder'), default='picture',
        help='whether each picture keeps to the budget (default), or all that are restored together, so that easy '
        'pictures leave more to difficult ones; all are then read and classified before the first one is restored',
    )  # fmt: skip
    choice.add_argument('--candidate', metavar='N:M', help='one candidate for everything, e.g. 2:4')
    parser.add_argument(
        '--patch', type=int, metavar='N',
        help='give patches of this side (a multiple of 8) a candidate each; tiles are then what is in memory at once. '
        '0 gives whole tiles one (default: 32, where the network can run patch by patch)',
    )  # fmt: skip
    parser.add_argument(
        '--precision', choices=['auto', 'fp32', 'int8'], default='auto',
        help='let only candidates be chosen that compute in float32, or with 8-bit integers; the bypass may be chosen '
        'always (default: auto, all of them)',
    )  # fmt: skip
    add_run_arguments(parser, device='auto')
    parser.add_argument('--class-map', action='store_true', help='also write NAME_classes.png: patches by candidate')
    parser.add_argument('--overwrite', action='store_true', help='redo pictures that are finished')
    parser.add_argument(
        '--max-pixels', type=int, metavar='N',
        help='refuse pictures of more pixels before they are decoded (default: 200 million)',
    )  # fmt: skip
    parser.add_argument('--json', metavar='FILE', help='write the figures of the run and of each picture')
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command. Returns 1 if a picture could not be restored."""
    from basicsr_classpruning.archs.forms import as_routed
    from basicsr_classpruning.environment import picture_limit
    from basicsr_classpruning.inference.files import find_jobs, find_skipped, restore_files
    from basicsr_classpruning.inference.restorer import Restorer

    check_outputs(args, 'json')
    if args.budget_in == 'time' and args.budget is None:
        raise UsageError('--budget-in time: needs --budget')
    if args.budget_over == 'folder' and args.budget is None:
        raise UsageError('--budget-over folder: needs --budget')
    max_pixels = picture_limit() if args.max_pixels is None else args.max_pixels
    if max_pixels < 1:
        raise UsageError(f'--max-pixels {max_pixels}: allowed are 1 and more')
    start = time.perf_counter()
    jobs = find_jobs(args.input, args.output, args.class_map)
    open_jobs = [job for job in jobs if args.overwrite or not job.finished]
    net = as_routed(load_model(args.model, args))
    restorer = Restorer(
        net,
        tile=args.tile,
        overlap=args.overlap,
        patch=_patch(args, net),
        budget=args.budget,
        budget_in=args.budget_in,
        candidate=args.candidate,
        precision=args.precision,
        backend=args.backend,
        threads=args.threads,
        device=args.device,
    )
    with _Bar(open_jobs) as bar:
        found = restore_files(restorer, open_jobs, max_pixels, bar.add, together=args.budget_over == 'folder')
        results = sorted(found, key=lambda result: result.job.name)
    report = _report(args, restorer, results, [job.name for job in jobs if job not in set(open_jobs)])
    report['not_pictures'] = find_skipped(args.input, args.output)
    report['seconds'] = time.perf_counter() - start
    for result in results:
        if result.error:
            print(f'failed: {with_flags(args.flags, result.error)}', file=sys.stderr)
        elif result.note:
            print(f'warning: {result.job.source}: {result.note}', file=sys.stderr)
    print(_summary(report))
    write_json(report, args.json)
    return 1 if report['failed'] else 0


def _patch(args: argparse.Namespace, network: RoutedNetwork) -> int | None:
    from basicsr_classpruning.inference.restorer import usual_patch

    if args.patch is not None:
        return args.patch or None
    return None if args.candidate else usual_patch(network, args.tile)


class _Bar:
    """A progress bar in pixels, for several threads."""

    def __init__(self, jobs: list[FileJob]) -> None:
        from tqdm import tqdm

        from basicsr_classpruning.inference.files import count_pixels

        total = sum(map(count_pixels, jobs))
        self._bar = tqdm(total=total, unit='px', unit_scale=True, desc=f'{len(jobs)} picture(s)', disable=not jobs)
        self._lock = threading.Lock()

    def add(self, pixels: int) -> None:
        with self._lock:
            self._bar.update(pixels)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _report(
    args: argparse.Namespace, restorer: Restorer, results: list[FileResult], skipped: list[str]
) -> dict[str, Any]:
    done = [(result, result.stats) for result in results if result.stats is not None]
    tiles = sum(stats.tiles for _, stats in done)
    average = sum(stats.average_macs * stats.tiles for _, stats in done) / tiles if tiles else None
    dense = sum(stats.macs_dense * stats.tiles for _, stats in done) / tiles if tiles else None
    spent = (
        sum(stats.spent * stats.dense for _, stats in done) / sum(stats.dense for _, stats in done) if done else None
    )
    return {
        'model': args.model,
        'input': args.input,
        'output': args.output,
        'budget': restorer.budget,
        'budget_in': args.budget_in,
        'budget_over': args.budget_over,
        'spent': spent,
        'enough': bool(done) and all(stats.enough for _, stats in done),
        'candidate': args.candidate,
        'precision': args.precision,
        'backend': args.backend,
        'threads': restorer.workers.count,
        'tile': restorer.tile,
        'overlap': args.overlap,
        'patch': restorer.patch,
        'scale': restorer.info.scale,
        'pictures': len(done),
        'average_macs': average,
        'macs_dense': dense,
        'saved': 1 - average / dense if average is not None and dense else None,
        'class_share': {
            name: sum(stats.class_share[name] * stats.tiles for _, stats in done) / tiles
            for name in (restorer.info.candidates if tiles else ())
        },
        'skipped': skipped,
        'failed': [{'picture': result.job.name, 'error': result.error} for result in results if result.error],
        'files': [
            {
                'picture': result.job.name,
                'result': str(result.job.target),
                'note': result.note,
                'pixels': stats.pixels,
                'tiles': stats.tiles,
                'average_macs': stats.average_macs,
                'macs_dense': stats.macs_dense,
                'saved': stats.saved,
                'spent': stats.spent,
                'seconds_allowed': (
                    restorer.budget * stats.dense if restorer.budget is not None and args.budget_in == 'time' else None
                ),
                'class_share': stats.class_share,
                'seconds': result.seconds,
                'seconds_restoring': stats.seconds,
            }
            for result, stats in done
        ],
    }


def _summary(report: dict[str, Any]) -> str:
    from basicsr_classpruning.images.folder import describe_skipped

    parts = [f'{report["pictures"]} picture(s) restored']
    if report['average_macs'] is not None:
        average, dense = report['average_macs'] / 1e9, report['macs_dense'] / 1e9
        parts.append(f'average MACs {average:.3f} G of {dense:.3f} G a tile, saved {report["saved"]:.1%}')
    budget = report['budget']
    if budget is not None and report['spent'] is not None:
        less = report['enough'] and report['spent'] < budget * 0.99
        unit = ' of the time' if report['budget_in'] == 'time' else ''
        parts.append(f'{report["spent"]:.2f} of {budget:.2f}{unit} spent' + (': more would not help' if less else ''))
    if report['class_share']:
        parts.append(', '.join(f'{name} {share:.0%}' for name, share in report['class_share'].items()))
    parts.append(f'{report["seconds"]:.1f} s')
    if report['skipped']:
        parts.append(f'{len(report["skipped"])} finished before and skipped (--overwrite redoes them)')
    renamed = sum(Path(item['picture']).suffix != Path(item['result']).suffix for item in report['files'])
    if renamed:
        parts.append(f'{renamed} written as PNG, as their formats are only read')
    if report['not_pictures']:
        parts.append(describe_skipped(report['not_pictures']))
    if report['failed']:
        parts.append(f'{len(report["failed"])} failed: ' + ', '.join(item['picture'] for item in report['failed']))
    return '; '.join(parts)
