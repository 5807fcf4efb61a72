"""What candidates of 8-bit integers lose, beside NNCF's int8 of the same network: ``benchmark_int8.py quality``.

It works in a folder that holds ``datasets/``, ``checkpoints/`` and ``zoo/``; checkpoints in ``models/`` and trainings
in ``experiments/`` are made where they are not there yet, all with the pictures of ``datasets/photos2k/train``. Trained
candidates start from the calibrated ones and learn the dense network's outputs, with the settings of
options/train/dncnn_int8.yml. What the result file has already is kept, and not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from basicsr_classpruning import kernels
from basicsr_classpruning.archs.forms import as_dense
from basicsr_classpruning.benchmark.metrics import compare
from basicsr_classpruning.benchmark.pairs import Pair, Pairs
from basicsr_classpruning.benchmark.rivals import Conditions, calibration_inputs
from basicsr_classpruning.benchmark.rivals.openvino_rival import openvino_int8
from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.data.degradations import Degradation
from basicsr_classpruning.loading import load
from basicsr_classpruning.sparsity.int8 import as_float
from tools.benchmark_kernels import environment
from tools.commands import classpruning

OPTIONS = Path(__file__).resolve().parents[1] / 'options' / 'train' / 'dncnn_int8.yml'
CALIBRATION = 'datasets/photos2k/train'
CANDIDATES = ('4:16-int8', '8:16-int8', '16:16-int8')
NNCF = 'nncf'
TRAINED = ' + training'
WEIGHTS = '16:16-int8, inputs in fp32'  # what rounding the weights alone loses
_NNCF_SIDE = 128  # of the pictures that NNCF takes its ranges from
_MIDDLE = 384  # pixels of a photograph that are compared, a side
Engine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """One dense network."""

    name: str
    """Of its file, without the ending."""
    label: str
    degrade: str
    psnr: str
    """What is compared: ``psnr``, or the luma's, ``psnr_y``, as is usual for super-resolution."""
    steps: int
    """Of the training; 0 where there is none."""
    how: tuple[str, ...] = ()
    """What else ``prune`` is told."""
    folder: str = 'checkpoints'
    """Where its file is."""
    trained: str | None = None
    """A file of its candidates that were trained otherwise than by this program."""

    @property
    def checkpoint(self) -> str:
        """Its file."""
        return f'{self.folder}/{self.name}.pth'


NETWORKS = (
    Network('dncnn_gray_sigma25', 'DnCNN 64×17, grey, σ = 25', 'noise25-25', 'psnr', 2000),
    Network('dncnn_color_blind', 'DnCNN 64×20, colour, blind, at σ = 25', 'noise25-25', 'psnr', 0),
    Network(
        'edsr_x2_64_dense',
        'EDSR 64×16, ×2, per-layer N',
        'bicubic2',
        'psnr_y',
        0,
        ('--per-layer',),
        folder='zoo',
        trained='zoo/edsr_x2_64_int8.pth',
    ),
)


@dataclass(frozen=True)
class PictureSet:
    """Pictures that a loss is averaged over."""

    name: str
    folder: str
    count: int
    """The first so many."""
    middle: int | None = None
    """Side of the middle part that is compared, in pixels of the true picture; all of it if None."""


SETS = (
    PictureSet('photos2k', 'datasets/photos2k/test', 10, _MIDDLE),
    PictureSet('BSD100', 'datasets/BSD100', 12),
    PictureSet('Set5', 'datasets/Set5', 5),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what ``run`` takes."""
    command.add_argument('--json', type=Path, required=True)
    command.add_argument('--threads', type=int, default=1)
    command.add_argument('--networks', nargs='+', default=[''], help='parts of names')


def run(arguments: argparse.Namespace) -> None:
    """Measures the networks named and writes the result."""
    result = json.loads(arguments.json.read_text()) if arguments.json.exists() else {'rows': []}
    for network in NETWORKS:
        if not any(part in network.name for part in arguments.networks):
            continue
        known = [row for row in result['rows'] if row['network'] == network.name]
        names = set.intersection(*(set(row['psnr']) for row in known)) if len(known) == len(SETS) else set()
        engines = make_engines(network, arguments.threads, names)
        rows = [measure(network, pictures, engines) for pictures in SETS]
        for row, before in zip(rows, known):
            row['psnr'] = {**before['psnr'], **row['psnr']}
        print(rows, flush=True)
        result['rows'] = [row for row in result['rows'] if row['network'] != network.name] + rows
        result['environment'] = environment('tools/benchmark_int8.py', ())
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')


def make_engines(network: Network, threads: int, known: Collection[str]) -> dict[str, Engine]:
    """All engines but those that are known: the dense network, NNCF's int8 of it, and its candidates.

    Trained candidates are called ``NAME + training``.
    """
    checkpoint, pruned = network.checkpoint, Path(f'models/{network.name}_int8.pth')
    if not pruned.exists():
        pruned.parent.mkdir(exist_ok=True)
        how = ('--int8', '--candidates', *CANDIDATES, *network.how)
        data = ('--calibration', CALIBRATION, '--degrade', network.degrade)
        classpruning('prune', checkpoint, '--out', pruned, *how, *data)
    dense = as_dense(load(checkpoint)).routed().dense
    engines: dict[str, Engine] = {}
    if 'dense' not in known:
        engines['dense'] = kernels.accelerate(dense.net, {})
    if NNCF not in known:
        inputs = calibration_inputs(CALIBRATION, Degradation.parse(network.degrade), dense, _NNCF_SIDE)
        engines[NNCF] = openvino_int8(Conditions(dense, threads, _NNCF_SIDE, inputs))
    files = {'': pruned}
    if network.steps:
        files[TRAINED] = train(network, pruned)
    elif network.trained:
        files[TRAINED] = Path(network.trained)
    for suffix, file in files.items():
        for candidate in load(file).routed().subnetworks:
            if candidate.runs_base and candidate.name + suffix not in known:
                engines[candidate.name + suffix] = kernels.accelerate(candidate.net, candidate.patterns)
            if candidate.name + suffix == CANDIDATES[-1] and WEIGHTS not in known:
                engines[WEIGHTS] = kernels.accelerate(as_float(candidate.net), {})
    return engines


def train(network: Network, start: Path) -> Path:
    """Trains a network's candidates, unless that is done; returns the file."""
    name = f'{network.name}_int8'
    trained = Path(f'experiments/{name}/models/net_g_latest.pth')
    if not trained.exists():
        options = training_options(network, start)
        path = start.with_suffix('.yml')
        path.write_text(yaml.safe_dump({'name': name, **options}, sort_keys=False))
        classpruning('train', '-opt', path)
    return trained


def training_options(network: Network, start: Path) -> dict:
    """The options of the example, for this network and as many steps as it gets."""
    options = yaml.safe_load(OPTIONS.read_text())
    net = dict(read_checkpoint(str(start)).network_g or {})
    if 'architecture' in net['base']:  # found out by spandrel, whose options are no entry of an options file
        net['base'] = {'type': 'Spandrel', 'checkpoint': network.checkpoint}
    scale = Degradation.parse(network.degrade).scale
    data = options['datasets']['train']
    data |= {'dataroot_gt': CALIBRATION, 'gt_size': data['gt_size'] * scale, 'num_worker_per_gpu': 0}
    data['color'] = 'gray' if 'gray' in network.name else 'rgb'
    data['degradation'] = {'type': 'bicubic'} if scale > 1 else data['degradation']
    options['datasets'] = {'train': data}
    options |= {'scale': scale, 'network_g': net}
    options['path']['pretrain_network_g'] = str(start)
    # More and smaller steps than if every candidate restored every image.
    options['train'] |= {'stages': {'supernet': network.steps, 'classifier': 0, 'joint': 0}, 'split': 'turn'}
    options['train']['scheduler']['periods'] = [network.steps]
    del options['val'], options['name']
    return options


def measure(network: Network, pictures: PictureSet, engines: dict[str, Engine]) -> dict:
    """Mean PSNR of each engine on some pictures."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for pair in pairs(network, pictures):
        x = pair.degraded.astype(np.float32) / (255 if pair.degraded.dtype == np.uint8 else 1)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]
            for name, engine in engines.items():
                restored = engine(batch)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
                scale = len(pair.truth) // len(pair.degraded)
                found[name].append(getattr(compare(restored, pair.truth, scale), network.psnr))
    count = max(map(len, found.values()), default=pictures.count)
    psnr = {name: sum(values) / len(values) for name, values in found.items()}
    return {'network': network.name, 'pictures': pictures.name, 'count': count, 'psnr': psnr}


def pairs(network: Network, pictures: PictureSet) -> Iterator[Pair]:
    """The pictures, degraded as a whole before their middles are cut."""
    degradation = Degradation.parse(network.degrade)
    scale, channels = degradation.scale, 1 if 'gray' in network.name else 3
    degraded = Pairs(pictures.folder, None, degradation)
    for index in range(min(pictures.count, len(degraded))):
        pair = degraded.pair(index, channels, scale)
        if pictures.middle is None:
            yield pair
            continue
        side = pictures.middle // scale
        top, left = ((length - side) // 2 for length in pair.degraded.shape[:2])
        small = pair.degraded[top : top + side, left : left + side]
        large = pair.truth[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        yield Pair(pair.name, small, large)
