"""Measures the kernels of 8-bit integers against OpenVINO's int8, and fp32 engines, interleaved in one run, and what
candidates of 8-bit integers lose.

    python tools/benchmark_int8.py layers --json docs/results/int8_layers.json        # 8 minutes
    python tools/benchmark_int8.py networks --json docs/results/int8_networks.json    # 6 minutes
    python tools/benchmark_int8.py quality --json docs/results/int8_quality.json      # tools/int8_quality.py
    python -m tools.pages kernels speed int8          # rewrites the tables in the documentation from the JSON files

A layer is measured in a stack of some, each with its ReLU, as it runs in a network: activations stay in integers
between them, and what turns floats into integers and back is part of the time, in all engines. Weights are random,
quantised by their largest, inputs by smallest and largest; zeros are random, 2 or 1 of each 4 units of four
neighbouring input channels stay. All convolutions of a network are integers, first and last too, as NNCF leaves none
out. Clocks and interleaving are those of tools/benchmark_kernels.py. ``CLASSPRUNING_INT8_ISA=avx2`` limits the
kernels; give it together with ``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`` to limit the others too.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

if not __package__:  # run as a file: Python looks for modules in its folder, and not in the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr_classpruning import kernels
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.benchmark.rivals import Conditions
from basicsr_classpruning.benchmark.rivals.openvino_rival import openvino_int8
from basicsr_classpruning.kernels import int8_native
from basicsr_classpruning.sizes import probe
from basicsr_classpruning.sparsity.int8 import Int8Conv2d
from tools import int8_quality
from tools.benchmark_kernels import Run, clock, environment, measure, networks, rivals

RIVAL = 'openvino-int8'
FP32 = ('openvino-fp32', 'ncnn', 'eager')
KEPT = {'dense': 4, '8:16': 2, '4:16': 1}  # units of each four
UNIT = 4


def drop_units(weight: Tensor, kept: int) -> Tensor:
    """A weight of which some of each four units of neighbouring input channels stay; all where they do not fit."""
    out_channels, in_channels, *taps = weight.shape
    if in_channels % (4 * UNIT) or kept == 4:
        return weight
    draws = torch.rand(out_channels, in_channels // (4 * UNIT), 4, *taps)
    mask = (draws.argsort(2).argsort(2) < kept).reshape(out_channels, in_channels // UNIT, *taps)
    return weight * mask.repeat_interleave(UNIT, 1)


def in_integers(net: nn.Module, x: Tensor, kept: int) -> nn.Module:
    """The network on the kernels, its convolutions pruned and turned into layers of integers."""
    net = copy.deepcopy(net)
    ranges: dict[nn.Module, tuple[float, float]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, a: ranges.update({m: (float(a[0].min()), float(a[0].max()))}))
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    for layer, (low, high) in ranges.items():
        assert isinstance(layer, nn.Conv2d)
        layer.weight.data = drop_units(layer.weight.data, kept)
        low, high = min(low, 0.0), max(high, 1e-6)
        scale = (high - low) / 255
        largest = layer.weight.detach().abs().flatten(1).amax(1).clamp(min=1e-9)
        Int8Conv2d.from_float(layer, largest / 127, scale, round(-low / scale))
    return kernels.accelerate(net.eval().requires_grad_(False), {})


def runs(net: nn.Module, x: Tensor, threads: int) -> dict[str, Run]:
    """The network on all engines."""
    conditions = Conditions(DenseNetwork(net, probe(net, [x.shape[1]]), {}).routed().dense, threads, x.shape[-1], x)
    engines: dict[str, Callable[[Tensor], Tensor]] = {RIVAL: openvino_int8(conditions)}
    for name, kept in KEPT.items():
        engines[name] = in_integers(net, x, kept)
    made: dict[str, Run] = {name: lambda engine=engine: engine(x) for name, engine in engines.items()}  # type: ignore[misc]
    return {**made, **rivals(net, x, threads, FP32)}


def layer_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each channels x size of a 3 x 3 convolution; seconds are those of ``depth`` layers."""
    for threads, channels, size in itertools.product(arguments.threads, arguments.channels, arguments.sizes):
        torch.set_num_threads(threads)
        pair = (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        net = nn.Sequential(*(copy.deepcopy(m) for _ in range(arguments.depth) for m in pair)).eval()
        seconds = measure(runs(net, torch.rand(1, channels, size, size), threads), arguments.seconds)
        sizes = {'channels': channels, 'size': size, 'depth': arguments.depth}
        yield {**sizes, 'threads': threads, 'seconds': seconds}


def network_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each network, on one tile."""
    for threads, (name, make) in itertools.product(arguments.threads, networks().items()):
        if name.startswith(('NAFNet', 'SwinIR')) or not any(part in name for part in arguments.networks):
            continue
        torch.set_num_threads(threads)
        x = torch.rand(1, 1 if name.startswith('DnCNN') else 3, arguments.tile, arguments.tile)
        seconds = measure(runs(make().eval(), x, threads), arguments.seconds)
        yield {'network': name, 'tile': arguments.tile, 'threads': threads, 'seconds': seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True)
    for name in ('layers', 'networks'):
        command = commands.add_parser(name)
        command.add_argument('--json', type=Path, required=True)
        command.add_argument('--threads', type=int, nargs='+', default=[1, 2])
        command.add_argument('--seconds', type=float, default=3.0 if name == 'layers' else 8.0, help='for each row')
    commands.choices['layers'].add_argument('--channels', type=int, nargs='+', default=[32, 64, 128])
    commands.choices['layers'].add_argument('--sizes', type=int, nargs='+', default=[48, 96, 128])
    commands.choices['layers'].add_argument('--depth', type=int, default=5)
    commands.choices['networks'].add_argument('--tile', type=int, default=96)
    commands.choices['networks'].add_argument('--networks', nargs='+', default=[''], help='parts of names')
    int8_quality.add_arguments(commands.add_parser('quality'))
    arguments = parser.parse_args()
    if arguments.what == 'quality':
        torch.set_num_threads(arguments.threads)
        int8_quality.run(arguments)
        return
    rows: list[dict] = []
    about = environment('tools/benchmark_int8.py', (int8_native.ISA_VARIABLE,))
    result = {'environment': {**about, 'int8': int8_native.available()}, 'rows': rows}
    ratios: dict[str, list[float]] = {}
    with torch.inference_mode():
        for row in layer_rows(arguments) if arguments.what == 'layers' else network_rows(arguments):
            rows.append(row)
            times = {name: values[clock(row['threads'])] for name, values in row['seconds'].items()}
            for name, value in times.items():
                ratios.setdefault(name, []).append(times[RIVAL] / value)
            found = {name: round(values[-1], 2) for name, values in ratios.items()}
            print({k: v for k, v in row.items() if k != 'seconds'}, f'{times[RIVAL] * 1e3:.2f} ms', found, flush=True)
    means = {name: round(math.exp(sum(map(math.log, values)) / len(values)), 2) for name, values in ratios.items()}
    print('geometric mean', means)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
