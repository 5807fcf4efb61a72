"""Measures the N:M kernels against the dense engines, interleaved in one run.

    python tools/benchmark_kernels.py layers --json docs/results/kernels_layers.json        # 5 minutes
    python tools/benchmark_kernels.py networks --json docs/results/kernels_networks.json    # 5 minutes
    python -m tools.pages kernels speed               # rewrites the tables in the documentation from the JSON files

``kernels`` is the dense layer or network on the kernels. ncnn, OpenVINO and ONNX Runtime run where they are installed.
torch.compile, which takes up to a minute for each network, and OpenVINO's int8, which NNCF makes in as long
(tools/benchmark_int8.py), run where ``--engines`` names them.

All engines of a row take turns, so that a disturbance of the machine hits all alike. Of every engine the median and the
lowest wall-clock time are kept, and the median processor time, which with one thread is the time on an idle machine.
``CLASSPRUNING_ISA=avx2`` limits the kernels; give it together with ``ONEDNN_MAX_CPU_ISA=AVX2`` and
``ATEN_CPU_CAPABILITY=avx2`` to limit the dense engines too: PyTorch and OpenVINO obey, ONNX Runtime has no such switch.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import basicsr_classpruning  # noqa: F401  (mends the environment for BasicSR)
from basicsr_classpruning import kernels
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.benchmark.rivals import RIVALS, Conditions
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.timing import settle
from basicsr_classpruning.sizes import probe
from basicsr_classpruning.sparsity.masks import mask_of, mismatch, rank
from basicsr_classpruning.sparsity.pattern import Pattern

PATTERNS = tuple(Pattern(n, 16, block, share_taps=block == 32) for block in (1, 4, 32) for n in (8, 4))
"""In blocks of 32 channels the taps share a mask too, which Winograd's algorithm gains from."""
ENGINES = ('eager', 'onnxruntime', 'ncnn', 'openvino-fp32', 'openvino-bf16')
DENSE_FP32 = ('eager', 'torch-compile', 'onnxruntime', 'ncnn', 'openvino-fp32')  # as far as they were run
LIMITS = ('CLASSPRUNING_ISA', 'ONEDNN_MAX_CPU_ISA', 'ATEN_CPU_CAPABILITY')  # what limits an engine's instructions
Run = Callable[[], object]


# --- networks and weights -------------------------------------------------------------------------------------------


def sparse_weight(weight: Tensor, pattern: Pattern) -> Tensor:
    """A weight with random zeros that follow the pattern."""
    return weight * mask_of(rank(torch.rand(weight.shape), pattern), pattern)


def prune(net: nn.Module, pattern: Pattern) -> dict[str, Pattern]:
    """Prunes every layer of at least M input channels that the pattern fits, in place; returns the pruned layers' names
    with their pattern."""
    pruned = {}
    for name, layer in net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or getattr(layer, 'groups', 1) != 1:
            continue
        if layer.weight.shape[1] >= pattern.m and not mismatch(layer.weight, pattern):
            layer.weight.data = sparse_weight(layer.weight.data, pattern)
            pruned[name] = pattern
    return pruned


def networks() -> dict[str, Callable[[], nn.Module]]:
    """The networks of the tables."""
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact
    from basicsr.archs.swinir_arch import SwinIR

    from basicsr_classpruning.archs.dncnn_arch import DnCNN
    from basicsr_classpruning.archs.nafnet_arch import NAFNet

    def srvgg() -> nn.Module:
        net = SRVGGNetCompact()
        for layer in net.modules():
            if isinstance(layer, nn.PReLU):  # OpenVINO is five times as slow with slopes that are all the same
                nn.init.uniform_(layer.weight, 0.1, 0.4)
        return net

    def swinir() -> nn.Module:
        return SwinIR(
            64, 1, 3, 60, [6] * 4, [6] * 4, window_size=8, mlp_ratio=2.0, upscale=2, upsampler='pixelshuffledirect'
        )

    return {
        'EDSR 64x16 x2': lambda: EDSR(3, 3, num_feat=64, num_block=16, upscale=2),
        'MSRResNet x4': lambda: MSRResNet(),
        'SRVGGNetCompact x4': srvgg,
        'DnCNN': lambda: DnCNN(),
        'NAFNet width 32': lambda: NAFNet(),
        'SwinIR-light x2': swinir,
        'EDSR 32x8 x2': lambda: EDSR(3, 3, num_feat=32, num_block=8, upscale=2),
        'DnCNN, 32 features': lambda: DnCNN(num_feat=32),
    }


def macs(net: nn.Module, x: Tensor) -> float:
    """Multiplications by non-zero weights of convolutions and linear layers in one forward pass."""
    total = 0

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        per_position = int(layer.weight.count_nonzero()) / layer.weight.shape[0]  # type: ignore[operator, index]
        total += output.numel() * per_position  # type: ignore[assignment]

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    net(x)
    for hook in hooks:
        hook.remove()
    return total


# --- engines --------------------------------------------------------------------------------------------------------


def rivals(net: nn.Module, x: Tensor, threads: int, names: Sequence[str] = ENGINES) -> dict[str, Run]:
    """Engines of `classpruning benchmark --engines`, on one network and input; times do not depend on weights, and so
    pictures for int8 need not be real."""
    network = DenseNetwork(net, probe(net, [x.shape[1]]), {}).routed().dense
    conditions = Conditions(network, threads, x.shape[-1], torch.rand(4, *x.shape[1:]))
    engines: dict[str, Run] = {}
    for name in names:
        try:
            engine = RIVALS[name].try_out(conditions)
        except UserError as error:
            print(f'missing: {name}: {error}', file=sys.stderr)
        else:
            engines[name] = lambda engine=engine: engine(x)  # type: ignore[misc]
    return engines


def on_kernels(make: Callable[[], nn.Module], x: Tensor) -> tuple[dict[str, Run], dict[str, float]]:
    """A network on the kernels, dense and pruned by each pattern, and which part of the MACs is left."""
    runs: dict[str, Run] = {}
    fractions: dict[str, float] = {}
    dense = macs(make().eval(), x)
    for name, pattern in [('kernels', None), *((pattern_key(pattern), pattern) for pattern in PATTERNS)]:
        net = make().eval()
        pruned = {} if pattern is None else prune(net, pattern)
        fractions[name] = macs(net, x) / dense
        module = kernels.accelerate(net, pruned)
        runs[name] = lambda module=module: module(x)  # type: ignore[misc]
    return runs, fractions


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Run], seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of each run (``wall``, ``wall_min``, ``cpu``); all take turns until the time is up, at least 7 times.

    With several threads a first run, which does not count, wakes them, as they are where tiles follow each other.
    """
    for run in runs.values():
        run()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 7:
        for name, run in runs.items():
            settle()
            if torch.get_num_threads() > 1:
                run()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: summary(values) for name, values in samples.items()}


def summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of (wall clock, processor time) and the lowest wall clock, in seconds."""
    wall, cpu = ([sample[i] for sample in samples] for i in range(2))
    times = {'wall': statistics.median(wall), 'wall_min': min(wall), 'cpu': statistics.median(cpu)}
    return {name: round(value, 7) for name, value in times.items()}


def clock(threads: int) -> str:
    """Which time tables compare: with several threads processor time says nothing, as waiting threads use it too."""
    return 'cpu' if threads == 1 else 'wall_min'


def pattern_key(pattern: Pattern) -> str:
    """Name of a pattern in the results."""
    return f'{pattern} block {pattern.block}'


def layer_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each kernel size x threads x channels x size of a convolution."""
    for side, channels_of in ((3, arguments.channels), (1, arguments.channels_1x1)):
        for threads, channels, size in itertools.product(arguments.threads, channels_of, arguments.sizes):
            torch.set_num_threads(threads)

            def make(channels: int = channels, side: int = side) -> nn.Module:
                return nn.Sequential(nn.Conv2d(channels, channels, side, padding=side // 2))

            x = torch.rand(1, channels, size, size)
            runs, _ = on_kernels(make, x)
            seconds = measure({**rivals(make().eval(), x, threads, arguments.engines), **runs}, arguments.seconds)
            sizes = {'channels': channels, 'size': size, 'kernel_size': side}
            yield {**sizes, 'threads': threads, 'seconds': seconds}


def network_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each network x threads, on one tile."""
    for threads, (name, make) in itertools.product(arguments.threads, networks().items()):
        if not any(part in name for part in arguments.networks):
            continue
        torch.set_num_threads(threads)
        x = torch.rand(1, 1 if name.startswith('DnCNN') else 3, arguments.tile, arguments.tile)
        runs, fractions = on_kernels(make, x)
        seconds = measure({**rivals(make().eval(), x, threads, arguments.engines), **runs}, arguments.seconds)
        yield {'network': name, 'tile': arguments.tile, 'threads': threads, 'macs': fractions, 'seconds': seconds}


def environment(script: str = 'tools/benchmark_kernels.py', limits_too: tuple[str, ...] = ()) -> dict:
    """What the numbers of a script were measured on; it obeys some more variables."""
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(':') for line in cpuinfo.splitlines())}
    limits = [f'{name}={os.environ[name]}' for name in (*limits_too, *LIMITS) if name in os.environ]
    packages = ('torch', 'onnxruntime', 'openvino', 'nncf', 'ncnn', 'numpy')
    versions = {name: metadata.version(name) for name in packages if find_spec(name)}
    return {
        'processor': '{model name}, family {cpu family}, model {model}'.format_map(fields),
        'cores': os.cpu_count(),
        'load_before': os.getloadavg()[0],
        'kernels': kernels.describe(),
        'versions': versions,
        'command': ' '.join([*limits, 'python', script, *sys.argv[1:]]),
        'date': datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True)
    for name in ('layers', 'networks'):
        command = commands.add_parser(name)
        command.add_argument('--json', type=Path, required=True)
        command.add_argument('--threads', type=int, nargs='+', default=[1, 2])
        command.add_argument('--seconds', type=float, default=3.0 if name == 'layers' else 8.0, help='for each row')
        command.add_argument('--engines', nargs='*', default=ENGINES, choices=[*RIVALS])
    layers = commands.choices['layers']
    layers.add_argument('--channels', type=int, nargs='+', default=[32, 64, 128], help='of 3 x 3 layers')
    layers.add_argument('--channels-1x1', type=int, nargs='+', default=[48, 96, 256], help='of 1 x 1 layers')
    layers.add_argument('--sizes', type=int, nargs='+', default=[48, 96, 128])
    commands.choices['networks'].add_argument('--tile', type=int, default=96)
    commands.choices['networks'].add_argument('--networks', nargs='+', default=[''], help='parts of names')
    arguments = parser.parse_args()
    rows: list[dict] = []
    result = {'environment': environment(), 'rows': rows}
    make_rows = layer_rows if arguments.what == 'layers' else network_rows
    with torch.inference_mode():
        for row in make_rows(arguments):
            rows.append(row)
            times = {name: values[clock(row['threads'])] for name, values in row['seconds'].items()}
            dense = min(times[name] for name in DENSE_FP32 if name in times)
            speedups = {name: round(dense / value, 2) for name, value in times.items()}
            print({k: v for k, v in row.items() if k not in ('seconds', 'macs')}, f'{dense * 1e3:.2f} ms', speedups)
            sys.stdout.flush()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
