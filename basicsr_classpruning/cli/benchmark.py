"""``classpruning benchmark``: compares networks and budgets on the same pictures."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from basicsr_classpruning.cli.common import (
    add_model_arguments,
    add_run_arguments,
    check_outputs,
    load_model,
    with_flags,
    write_json,
)
from basicsr_classpruning.data.degradations import text_forms
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.text_table import format_table

if TYPE_CHECKING:
    from basicsr_classpruning.benchmark.models import BenchmarkModel
    from basicsr_classpruning.benchmark.page import SampleImage
    from basicsr_classpruning.benchmark.run import Progress, Row, Settings
    from basicsr_classpruning.routing.network import RoutedNetwork


def add_parser(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        'benchmark',
        help='compare networks and budgets on the same pictures',
        description='Restores the same pictures with several networks, candidates and budgets, and compares quality, '
        'average MACs and measured time. Each budget comes with two reference rows: oracle (the best allocation, '
        'knowing the errors) and random (the same shares, dealt by chance). Budgets are met over all pictures '
        'together. With neither --budgets nor --candidates: all candidates, and the classifier\'s own choice. A '
        'network with a single candidate is measured with it.',
    )  # fmt: skip
    parser.add_argument('--models', metavar='FILE', nargs='+', required=True, help='ClassPruning or dense checkpoints')
    parser.add_argument('--gt', metavar='DIR', required=True, help='folder of true pictures (8 bit)')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--lq', metavar='DIR', help='folder of degraded pictures of the same names')
    source.add_argument('--degrade', metavar='HOW', help=f'degrade the true ones: {text_forms()}')
    parser.add_argument('--budgets', type=float, nargs='+', metavar='SHARE', default=[], help='e.g. 0.4 0.6 0.8')
    parser.add_argument(
        '--budget-in', choices=('macs', 'time'), default='macs',
        help='what budgets count: MACs (default), or time, which is measured once on this machine and kept',
    )  # fmt: skip
    parser.add_argument('--candidates', nargs='+', metavar='N:M', default=[], help='e.g. 1:4 2:4')
    parser.add_argument(
        '--engines', action='store_true',
        help='also run the dense networks with what else there is for CPUs: PyTorch (channels-last) and torch.compile, '
        'ONNX Runtime, ncnn, OpenVINO (fp32, bf16, int8); what is not installed is named',
    )  # fmt: skip
    parser.add_argument(
        '--calibration', metavar='DIR',
        help='folder of pictures like those to be restored, for the int8 engine: clean ones with --degrade, degraded '
        'ones with --lq',
    )  # fmt: skip
    parser.add_argument(
        '--repeats', type=int, metavar='N', default=3, help='measurements of each tile; the median counts (default: 3)'
    )
    parser.add_argument(
        '--patch', type=int, metavar='N',
        help='route patches of this side (a multiple of 8) instead of whole tiles; rings and halos are counted',
    )  # fmt: skip
    add_run_arguments(parser, device='cpu')
    parser.add_argument('--json', metavar='FILE', help='write rows, settings and what the machine is')
    parser.add_argument('--csv', metavar='FILE', help='write the rows as CSV')
    parser.add_argument('--markdown', metavar='FILE', help='write the table as Markdown')
    parser.add_argument('--plot', metavar='FILE.png', help='plot PSNR against average MACs and against time')
    parser.add_argument(
        '--report', metavar='FILE.html',
        help='write one page with the table, the plot, and pictures before and after with their class maps',
    )  # fmt: skip
    add_model_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command."""
    import torch

    from basicsr_classpruning.benchmark.models import missing_engines
    from basicsr_classpruning.benchmark.page import Gallery
    from basicsr_classpruning.benchmark.pairs import Pairs
    from basicsr_classpruning.benchmark.report import to_cells, unspent
    from basicsr_classpruning.benchmark.run import Benchmark, Settings, to_json
    from basicsr_classpruning.cli.progress import StageBar
    from basicsr_classpruning.config import import_modules
    from basicsr_classpruning.data.degradations import Degradation
    from basicsr_classpruning.inference.tiling import usual_tile
    from basicsr_classpruning.machine import describe_machine

    check_outputs(args, 'json', 'csv', 'markdown', 'plot')
    for name in ('tile', 'threads', 'repeats'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f'--{name} {getattr(args, name)}: allowed are 1 and more')
    import_modules(args.imports)  # a degradation may be the user's own
    pairs = Pairs(args.gt, args.lq, Degradation.parse(args.degrade) if args.degrade else None)
    if args.threads:
        torch.set_num_threads(args.threads)
    networks = _load_networks(args)
    settings = Settings(
        tile=args.tile or max(usual_tile(args.overlap, one.info.sizes, args.patch) for one in networks.values()),
        overlap=args.overlap,
        patch=args.patch,
        budgets=tuple(args.budgets),
        budget_in=args.budget_in,
        candidates=tuple(args.candidates),
        backend=args.backend,
        threads=torch.get_num_threads(),
        repeats=args.repeats,
    )
    gallery = Gallery()
    with StageBar() as bar:
        models = _make_models(args, networks, settings, bar)
        rows = Benchmark(models, pairs, settings, bar, gallery.add if args.report else None).run()
    missing = missing_engines(models)
    for name, reason in missing.items():
        print(f'missing: {name}: {with_flags(args.flags, reason)}', file=sys.stderr)
    print(format_table(to_cells(rows)))
    for line in unspent(rows):
        print(line)
    report = {
        'command': args.call,
        'missing_engines': missing,
        'machine': describe_machine(),
        'threads': settings.threads,
        'pictures': len(pairs),
        'gt': args.gt,
        'lq': args.lq,
        'degrade': args.degrade,
        'calibration': args.calibration,
        'tile': settings.tile,
        'overlap': settings.overlap,
        'patch': settings.patch,
        'repeats': settings.repeats,
        'seed': settings.seed,
        'device': args.device,
    }
    write_json({'rows': [to_json(row) for row in rows], **report}, args.json)
    _write_reports(args, rows, gallery.samples, report)
    return 0


def _load_networks(args: argparse.Namespace) -> dict[str, RoutedNetwork]:
    from basicsr_classpruning.archs.forms import as_routed
    from basicsr_classpruning.devices import pick_device

    if args.engines and args.device != 'cpu':
        raise UsageError('--engines: they run on the CPU; leave --device out')
    if args.calibration and not args.engines:
        raise UsageError('--calibration: it is for the int8 engine; add --engines')
    device = pick_device(args.device)
    names = zip(_names(args.models), args.models)
    return {name: as_routed(load_model(path, args).to(device)) for name, path in names}


def _make_models(
    args: argparse.Namespace, networks: dict[str, RoutedNetwork], settings: Settings, progress: Progress
) -> list[BenchmarkModel]:
    from basicsr_classpruning.benchmark.models import make_model
    from basicsr_classpruning.inference.tiling import check_tile

    models = []
    for name, network in networks.items():
        models.append(make_model(name, network, settings.overlap, settings.backend))
        check_tile(settings.tile, settings.overlap, network.info.sizes)
    if args.engines:
        dense = [model for model in models if not model.candidates]
        for model in dense or models:
            _add_engines(args, settings, model, progress)
    return models


def _add_engines(args: argparse.Namespace, settings: Settings, model: BenchmarkModel, progress: Progress) -> None:
    from basicsr_classpruning.benchmark.models import add_engines
    from basicsr_classpruning.benchmark.rivals import Conditions, calibration_inputs
    from basicsr_classpruning.data.degradations import Degradation

    network, calibration = model.network.dense, None
    if args.calibration:
        degradation = Degradation.parse(args.degrade) if args.degrade else None
        calibration = calibration_inputs(args.calibration, degradation, network, settings.tile)
    conditions = Conditions(network, settings.threads, settings.tile, calibration)
    add_engines(model, conditions, lambda done, total: progress(f'engines for {model.name}', done, total))


def _names(paths: list[str]) -> list[str]:
    """File names without folder and suffix, or the paths themselves where those are not unique."""
    short = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if len(set(paths)) < len(paths):
        raise UsageError('--models: the same file is given twice')
    return short if len(set(short)) == len(short) else paths


def _write_reports(
    args: argparse.Namespace, rows: list[Row], samples: list[SampleImage], report: dict[str, Any]
) -> None:
    from basicsr_classpruning.benchmark.page import to_html
    from basicsr_classpruning.benchmark.report import plot, to_csv, to_markdown

    title = f'{_folder_name(args.gt)}, {args.degrade or _folder_name(args.lq)}'
    if args.csv:
        _write(args.csv, to_csv(rows).encode())
    if args.markdown:
        _write(args.markdown, to_markdown(rows).encode())
    if args.plot:
        _write(args.plot, plot(rows, title))
    if args.report:
        _write(args.report, to_html(rows, samples, title, report).encode())


def _folder_name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _write(path: str, content: bytes) -> None:
    from basicsr_classpruning.safe_files import write_atomically

    write_atomically(path, lambda file: file.write(content))
