#!/usr/bin/env python
"""What a supernet training step costs, beside a dense step of the same network, batch and precision.

Steps alternate in one process and medians are compared; peak memory is measured in a process for each kind.

    python tools/benchmark_training.py [--threads 2] [--amp bf16] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import basicsr_classpruning  # noqa: F401 — mends the environment for the next import

# isort: split
from basicsr.archs import build_network

from basicsr_classpruning.archs.classpruning_arch import ClassPruning

BASE = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 16, 'upscale': 2}
CANDIDATES = ['4:16', '8:16', '16:16']
BATCH, SIDE = 8, 48


def dense_step(amp: bool) -> Callable[[], None]:
    """One optimiser step of the base network."""
    net = build_network(BASE).to(memory_format=torch.channels_last)
    return _step(net, lambda x: net(x), amp)


def supernet_step(amp: bool) -> Callable[[], None]:
    """One optimiser step of the supernet stage: the batch is split among the candidates."""
    net = ClassPruning(BASE, CANDIDATES)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.selection.decay = 2e-4
    classes = torch.arange(BATCH) % len(CANDIDATES)
    return _step(net, lambda x: net(x, classes), amp, renew=net.rank_by_magnitude)


def _step(
    net: torch.nn.Module,
    run: Callable[[torch.Tensor], torch.Tensor],
    amp: bool,
    renew: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    lq = torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    gt = torch.rand(BATCH, 3, 2 * SIDE, 2 * SIDE)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count % 10 == 0:  # train.mask_interval
            renew()
        with torch.autocast('cpu', torch.bfloat16) if amp else contextlib.nullcontext():
            output = run(lq)
        loss = functional.l1_loss(output.float(), gt)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


KINDS = {'dense': dense_step, 'supernet': supernet_step}


def high_water_mark() -> float:
    """Most memory in MB that this process has held so far. (getrusage would count the parent's as well.)"""
    with open('/proc/self/status', encoding='ascii') as file:
        line = next(line for line in file if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1024


def peak_memory(kind: str, args: argparse.Namespace) -> float:
    """Peak memory in MB that three steps add to that of the imported libraries."""
    command = [sys.executable, __file__, '--only', kind, '--threads', str(args.threads)]
    if args.amp:
        command += ['--amp', args.amp]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--amp', choices=['bf16'], help='mixed precision (default: fp32)')
    parser.add_argument('--repeats', type=int, default=12)
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--only', choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        before = high_water_mark()
        step = KINDS[args.only](bool(args.amp))
        for _ in range(3):
            step()
        print(high_water_mark() - before)
        return
    steps = {kind: make(bool(args.amp)) for kind, make in KINDS.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(args.repeats + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:  # the first round warms up
                times[kind].append(time.perf_counter() - start)
    seconds = {kind: statistics.median(values) for kind, values in times.items()}
    memory = {kind: peak_memory(kind, args) for kind in KINDS}
    result = {
        'network': BASE, 'batch': BATCH, 'side': SIDE, 'threads': args.threads, 'amp': args.amp,
        'seconds': seconds, 'memory_mb': memory, 'torch': torch.__version__,
        'time_ratio': seconds['supernet'] / seconds['dense'],
        'memory_ratio': memory['supernet'] / memory['dense'],
    }  # fmt: skip
    for kind in KINDS:
        print(f'{kind:10} {seconds[kind]:.3f} s a step, {memory[kind]:.0f} MB')
    print(f'ratio      {result["time_ratio"]:.3f} time, {result["memory_ratio"]:.3f} memory')
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=2)


if __name__ == '__main__':
    main()
