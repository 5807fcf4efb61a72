"""Measures the N:M kernels against the dense engines, interleaved in one run.

    python tools/benchmark_kernels.py layers --json docs/results/kernels_layers.json
    python tools/benchmark_kernels.py networks --json docs/results/kernels_networks.json
    python -m tools.pages kernels                     # rewrites the tables in docs/kernels.md from the JSON files

All engines of a row take turns, so that a disturbance of the machine hits all alike. Of every engine the median and the
lowest wall-clock time are kept, and the median processor time, which with one thread is the time on an idle machine.
``CLASSPRUNING_ISA=avx2`` limits the kernels; give it together with ``ONEDNN_MAX_CPU_ISA=AVX2`` and
``ATEN_CPU_CAPABILITY=avx2`` to limit the dense engines too: PyTorch and OpenVINO obey, ONNX Runtime has no such switch.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import io
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import basicsr_classpruning  # noqa: F401  (mends the environment for BasicSR)
from basicsr_classpruning import kernels
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.benchmark.rivals import Conditions, make_rivals
from basicsr_classpruning.sizes import probe
from basicsr_classpruning.sparsity.pattern import Pattern

PATTERNS = tuple(Pattern(n, 16, block) for block in (1, 4) for n in (8, 4))
DENSE_FP32 = ('eager', 'torch-compile', 'onnxruntime', 'ncnn', 'openvino', 'openvino-fp32')  # as far as they were run
LIMITS = ('CLASSPRUNING_ISA', 'ONEDNN_MAX_CPU_ISA', 'ATEN_CPU_CAPABILITY')  # what limits an engine's instructions
PAUSE = 0.002  # seconds before each run: threads of the engine before wait for work and count as processor time
Run = Callable[[], object]


# --- networks and weights -------------------------------------------------------------------------------------------


def sparse_weight(weight: Tensor, pattern: Pattern) -> Tensor:
    """A weight with random zeros that follow the pattern."""
    out_channels, in_channels, *taps = weight.shape
    draws = torch.rand(out_channels // pattern.block, in_channels // pattern.m, pattern.m, *taps)
    mask = (draws.argsort(2).argsort(2) < pattern.n).reshape(-1, in_channels, *taps)
    return weight * mask.repeat_interleave(pattern.block, 0)


def prune(net: nn.Module, pattern: Pattern) -> dict[str, Pattern]:
    """Prunes every layer that the pattern fits, in place; returns the pruned layers' names with their pattern."""
    pruned = {}
    for name, layer in net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or getattr(layer, 'groups', 1) != 1:
            continue
        out_channels, in_channels = layer.weight.shape[:2]
        if in_channels % pattern.m == 0 and out_channels % pattern.block == 0:
            layer.weight.data = sparse_weight(layer.weight.data, pattern)
            pruned[name] = pattern
    return pruned


def networks() -> dict[str, Callable[[], nn.Module]]:
    """The networks of the tables."""
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    from basicsr_classpruning.archs.dncnn_arch import DnCNN
    from basicsr_classpruning.archs.nafnet_arch import NAFNet

    return {
        'EDSR 64x16 x2': lambda: EDSR(3, 3, num_feat=64, num_block=16, upscale=2),
        'MSRResNet x4': lambda: MSRResNet(),
        'SRVGGNetCompact x4': lambda: SRVGGNetCompact(),
        'DnCNN': lambda: DnCNN(),
        'NAFNet width 32': lambda: NAFNet(),
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


def onnx_bytes(net: nn.Module, x: Tensor) -> bytes:
    """The network as an ONNX file for inputs of x's shape."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            net,
            (x,),
            buffer,  # type: ignore[arg-type]
            input_names=['x'],
            output_names=['y'],
            dynamo=False,
            opset_version=17,
        )
    return buffer.getvalue()


def eager_engine(net: nn.Module, x: Tensor) -> Run:
    """PyTorch, channels-last."""
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: last(x)


def onnxruntime_engine(model: bytes, x: Tensor, threads: int) -> Run:
    """ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    array = x.numpy()
    return lambda: session.run(None, {'x': array})


def openvino_engine(model: bytes, x: Tensor, threads: int, precision: str) -> Run:
    """OpenVINO's CPU plugin in f32 or bf16 (which it runs in f32 where the processor has no bf16)."""
    import openvino

    core = openvino.Core()
    options = {'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
    request = core.compile_model(core.read_model(io.BytesIO(model)), 'CPU', options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    return request.infer


def bf16_engine(model: bytes, x: Tensor, threads: int) -> dict[str, Run]:
    """OpenVINO in bf16; nothing where the processor, or what is allowed of it, does not compute in bf16."""
    try:
        return {'openvino-bf16': openvino_engine(model, x, threads, 'bf16')}
    except RuntimeError:
        return {}


def dense_engines(net: nn.Module, x: Tensor, threads: int) -> dict[str, Run]:
    """All dense engines on one network and input."""
    model = onnx_bytes(net, x)
    return {
        'eager': eager_engine(net, x),
        'onnxruntime': onnxruntime_engine(model, x, threads),
        'openvino': openvino_engine(model, x, threads, 'f32'),
        **bf16_engine(model, x, threads),
    }


def rivals(net: nn.Module, x: Tensor, threads: int) -> dict[str, Run]:
    """What `classpruning benchmark --engines` compares with, on one network and input; times do not depend on weights,
    and so pictures for int8 need not be real."""
    network = DenseNetwork(net, probe(net, [x.shape[1]]), {}).routed().dense
    conditions = Conditions(network, threads, x.shape[-1], torch.rand(4, *x.shape[1:]))
    engines, missing = make_rivals(conditions, lambda done, total: None)
    for name, reason in missing.items():
        print(f'missing: {name}: {reason}', file=sys.stderr)
    return {name: lambda engine=engine: engine(x) for name, engine in engines.items()}  # type: ignore[misc]


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Run], seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of each run (``wall``, ``wall_min``, ``cpu``); all take turns until the time is up, at least 7 times."""
    for run in runs.values():
        run()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 7:
        for name, run in runs.items():
            time.sleep(PAUSE)
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
    """One row for each channels x size x threads of a convolution: ``kernels`` is the dense layer on the kernels."""
    side = arguments.kernel_size
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for channels in arguments.channels:
            for size in arguments.sizes:
                net = nn.Conv2d(channels, channels, side, padding=side // 2).eval()
                x = torch.rand(1, channels, size, size)
                runs = dense_engines(net, x, threads)
                dense = kernels.accelerate(nn.Sequential(net), {})
                runs['kernels'] = lambda module=dense, x=x: module(x)  # type: ignore[misc]
                for pattern in PATTERNS:
                    sparse = nn.Sequential(nn.Conv2d(channels, channels, side, padding=side // 2))
                    module = kernels.accelerate(sparse, prune(sparse, pattern))
                    runs[pattern_key(pattern)] = lambda module=module, x=x: module(x)  # type: ignore[misc]
                seconds = measure(runs, arguments.seconds)
                sizes = {'channels': channels, 'size': size, 'kernel_size': side}
                yield {**sizes, 'threads': threads, 'seconds': seconds}


def network_rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each network x threads, on one tile."""
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name, make in networks().items():
            if not any(part in name for part in arguments.networks):
                continue
            net = make().eval()
            channels = 1 if name == 'DnCNN' else 3
            x = torch.rand(1, channels, arguments.tile, arguments.tile)
            runs = rivals(net, x, threads)
            dense_macs = macs(net, x)
            fractions = {}
            for pattern in PATTERNS:
                sparse = make().eval()
                pruned = prune(sparse, pattern)
                fractions[pattern_key(pattern)] = macs(sparse, x) / dense_macs
                module = kernels.accelerate(sparse, pruned)
                runs[pattern_key(pattern)] = lambda module=module, x=x: module(x)  # type: ignore[misc]
            seconds = measure(runs, arguments.seconds)
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
        command.add_argument('--seconds', type=float, default=4.0, help='for each row')
    commands.choices['layers'].add_argument('--channels', type=int, nargs='+', default=[48, 64, 128, 256])
    commands.choices['layers'].add_argument('--sizes', type=int, nargs='+', default=[48, 64, 96, 128])
    commands.choices['layers'].add_argument('--kernel-size', type=int, default=3, choices=(1, 3))
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
