"""Fuzzing: options files, checkpoints of every kind, pictures and LMDB entries, each damaged or changed at random.

Every one must end in success or in one clear line with exit status 1 or 2, within ten seconds and four gigabytes. A
training ends after its second iteration.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
import yaml
from PIL import Image

from basicsr_classpruning.checkpoint import write_checkpoint, write_compact_safetensors, write_safetensors
from basicsr_classpruning.cli import main
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.writing import write_picture
from basicsr_classpruning.models.guarded_model import GuardedSRModel
from basicsr_classpruning.safe_files import save_file
from tests.tiny import NETWORKS, dense, int8_network
from tests.tiny import classpruning as tiny_network
from tools.reliability.changes import change_bytes, change_member, change_tensors, change_values
from tools.reliability.common import GIB, Child, Outcome, Result, Row
from tools.reliability.material import EXPERIMENT, training, write_options

_MEMORY = 4 * GIB
_SECONDS = 10  # of computing
_PATIENCE = 120  # seconds of waiting, on a machine that others keep busy
_ITERATIONS = 2


def run(count: int, seed: int, folder: Path) -> Result:
    """Tries ``count`` files of each of three groups, the groups side by side."""
    groups = ('options_files', 'checkpoint_files', 'picture_files')
    # Not multiprocessing's pool, whose processes may have no children.
    with ProcessPoolExecutor(len(groups), multiprocessing.get_context('fork')) as pool:
        parts = list(pool.map(_run_group, groups, *([value] * len(groups) for value in (count, seed, folder))))
    ends = sum((part.ends for part in parts), Counter())
    return Result(
        rows=[row for part in parts for row in part.rows],
        figures={
            'exit statuses': dict(sorted(ends.items())),
            'largest memory of a process, MiB': round(max(part.peak for part in parts) / 2**20),
            'slowest process, seconds of computing': round(max(part.slowest for part in parts), 1),
        },
    )


@dataclass
class Part:
    """What one group found."""

    rows: list[Row] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Exit status → number of processes."""
    peak: int = 0
    """Bytes."""
    slowest: float = 0.0
    """Seconds."""


def _run_group(name: str, count: int, seed: int, folder: Path) -> Part:
    (folder / name).mkdir()
    trials = Trials(folder / name, seed)
    getattr(trials, name)(count)
    trials.part.rows = trials.result.rows
    return trials.part


class _Enough(BaseException):
    """Ends a training that works."""


class Trials:
    """Hands changed files to the command, one process each."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.result = Result()
        self.part = Part()
        self.settings = training(folder, (1, 1, 1), save_every=1, validate_every=2)
        self.settings['path'] = {'strict_load_g': True}
        self.inputs = folder / 'pictures'
        self.small = folder / 'small'
        self.small.mkdir()
        cv2.imwrite(str(self.small / 'x.png'), np.full((16, 16, 3), 99, np.uint8))
        self.model, state = self._train()
        self.checkpoints = dict(_checkpoints(folder, state))
        self.pictures = dict(_pictures(folder))

    def _train(self) -> tuple[Path, bytes]:
        """The network and the training state of a run's first iteration."""

        def work() -> int:
            os.chdir(self.folder)
            return main(['train', '-opt', write_options(self.folder, self.settings)])

        outcome = Child(work).wait()
        if outcome.status:
            raise RuntimeError(f'the undisturbed run failed: {outcome.output}')
        experiment = self.folder / EXPERIMENT
        return experiment / 'models' / 'net_g_1.pth', (experiment / 'training_states' / '1.state').read_bytes()

    def _rng(self, kind: str, number: int) -> random.Random:
        return random.Random(f'{self.seed} {kind} {number}')

    def _try(self, row: str, number: int, command: list[object]) -> Outcome:
        """Runs a command in a fresh folder, in which a run has saved once; its end is counted."""
        here = self.folder / 'here'
        (here / EXPERIMENT / 'models').mkdir(parents=True)
        shutil.copy(self.model, here / EXPERIMENT / 'models' / 'net_g_1.pth')

        def work() -> int:
            os.chdir(here)
            original = GuardedSRModel.optimize_parameters

            def optimize(model: GuardedSRModel, iteration: int) -> None:
                if iteration > _ITERATIONS:
                    raise _Enough
                original(model, iteration)

            GuardedSRModel.optimize_parameters = optimize  # type: ignore[method-assign, assignment]
            try:
                return main([str(argument) for argument in command])
            except _Enough:
                return 0

        outcome = Child(work, _MEMORY).wait(_PATIENCE)
        shutil.rmtree(here)
        complaint = outcome.complaint
        if not complaint and outcome.computing > _SECONDS:
            complaint = f'computed for {outcome.computing:.0f} s'
        if not complaint and outcome.peak > _MEMORY:
            complaint = f'took {outcome.peak / GIB:.1f} GiB'
        self.result.row(row).add(complaint and f'{row} {number}: {complaint}')
        self.part.ends[str(outcome.status)] += 1
        self.part.peak = max(self.part.peak, outcome.peak)
        self.part.slowest = max(self.part.slowest, outcome.computing)
        return outcome

    def options_files(self, count: int) -> None:
        """Options files."""
        for number in range(count):
            self.options(number)

    def checkpoint_files(self, count: int) -> None:
        """Checkpoints of every kind."""
        for number in range(count):
            self.checkpoint(number)

    def picture_files(self, count: int) -> None:
        """One LMDB entry and nine pictures, again and again."""
        for number in range(0, count, 10):
            self.lmdb_entry(number)
            if number + 1 < count:
                self.pictures_of(range(number + 1, min(number + 10, count)))

    def options(self, number: int) -> None:
        """An options file: its values changed, or its bytes."""
        rng = self._rng('options', number)
        path = self.folder / 'changed.yml'
        if rng.random() < 0.75:
            changed = change_values(self.settings, rng)
            changed.pop('custom_imports', None)  # importing is the user's wish; nothing to be tried at random
            path.write_text(yaml.safe_dump(changed))
        else:
            path.write_bytes(change_bytes(yaml.safe_dump(self.settings).encode(), rng))
        self._try('options file', number, ['train', '-opt', path])

    def checkpoint(self, number: int) -> None:
        """A checkpoint of each kind in turn."""
        kind = list(self.checkpoints)[number % len(self.checkpoints)]
        suffix, build = self.checkpoints[kind]
        path = self.folder / f'changed{suffix}'
        path.write_bytes(build(self._rng('checkpoint', number)))
        if kind == 'training state':
            options = {**self.settings, 'path': {'resume_state': str(path)}}
            (self.folder / 'resume.yml').write_text(yaml.safe_dump(options))
            self._try(kind, number, ['train', '-opt', self.folder / 'resume.yml'])
        else:
            self._try(kind, number, ['restore', self.small, '--model', path, '--output', 'out', '--backend', 'dense'])

    def pictures_of(self, numbers: range) -> None:
        """Pictures of each format in turn, restored together: each must be restored or be named in a line."""
        folder = self._empty('changed')
        for number in numbers:
            name = list(self.pictures)[number % len(self.pictures)]
            content = change_bytes(self.pictures[name], self._rng('picture', number))
            (folder / f'{number}-{name}').write_bytes(content)
        command = ['restore', folder, '--model', self.model, '--output', 'out', '--backend', 'dense']
        outcome = self._try('picture', numbers[0], command)
        row = self.result.row('picture')
        row.tried += len(numbers) - 1
        failed = sum(line.startswith('failed: ') for line in outcome.output.splitlines())
        if f'{len(numbers) - failed} picture(s) restored' not in outcome.output:
            row.lost.append(f'pictures {numbers[0]} to {numbers[-1]}: not all are restored or named')

    def _empty(self, name: str) -> Path:
        """A new folder, in place of the one before."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def lmdb_entry(self, number: int) -> None:
        """An LMDB of one changed picture, or with a changed list of its pictures, trained on."""
        rng = self._rng('LMDB entry', number)
        name = rng.choice(list(self.pictures))
        content = change_bytes(self.pictures[name], rng)
        folder = self._empty('changed.lmdb')
        line = b'key.png (40,48,3) 1\n'
        if rng.random() < 0.2:
            line, content = change_bytes(line, rng), self.pictures[name]
        (folder / 'meta_info.txt').write_bytes(line)
        with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
            transaction.put(b'key', content)
        options = copy.deepcopy(self.settings)
        options['datasets']['train'].update(dataroot_gt=str(folder), io_backend={'type': 'lmdb'})
        (self.folder / 'lmdb.yml').write_text(yaml.safe_dump(options))
        self._try('LMDB entry', number, ['train', '-opt', self.folder / 'lmdb.yml'])


def _checkpoints(
    folder: Path, training_state: Any
) -> Iterator[tuple[str, tuple[str, Callable[[random.Random], bytes]]]]:
    """Kind of checkpoint → suffix, and what makes a changed one."""
    net = tiny_network('DnCNN')
    own = tiny_network('DnCNN', weights='own')
    plain = dense('DnCNN').state_dict()
    path = folder / 'made'
    network, state = net.options, net.state_dict()

    def file(write: Callable[..., object], *arguments: Any) -> bytes:
        write(*arguments)
        return path.read_bytes()

    def legacy(content: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=False)
        return stream.getvalue()

    whole = file(write_checkpoint, path, {'params': state, 'params_ema': state}, network)
    packed = file(write_checkpoint, path, {'params': own.state_dict()}, own.options)
    safe = file(write_safetensors, path, state, network)
    compact = file(write_compact_safetensors, path, own.state_dict(), own.options)
    old = legacy(plain)
    # Units, a bypass, and groups that are shorter than M: 18 channels are 16 and a unit that is not whole.
    ragged = {**NETWORKS['DnCNN'], 'num_feat': 18}
    int8 = int8_network(base=ragged)
    integers = file(write_checkpoint, path, {'params': int8.state_dict()}, int8.options)

    def saved(content: Any) -> bytes:
        return file(save_file, content, path)

    def changed_file(rng: random.Random) -> bytes:
        kind = rng.randrange(5)
        if kind == 0:
            return change_bytes(whole, rng)
        if kind == 1:
            return change_member(whole, rng)
        if kind == 2:
            return saved({'params': change_tensors(state, rng), 'network_g': network})
        if kind == 3:
            return saved(change_values({'params': dict(state), 'network_g': network}, rng))
        return saved({'params': state, 'network_g': change_values(network, rng)})

    def changed_packed(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return change_member(data, rng)
        path.write_bytes(data)
        return saved(change_values(torch.load(path, weights_only=True), rng))

    def changed_safetensors(data: bytes, options: dict, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return change_bytes(data, rng)
        (length,) = struct.unpack('<Q', data[:8])
        header = data[8 : 8 + length]
        if rng.random() < 0.3:
            header = json.dumps(change_values(json.loads(header), rng)).encode()
        elif rng.random() < 0.5:
            header = change_bytes(header, rng)
        else:
            metadata = json.loads(header)['__metadata__']
            metadata['network_g'] = json.dumps(change_values(options, rng))
            header = json.dumps({**json.loads(header), '__metadata__': metadata}).encode()
        return struct.pack('<Q', len(header)) + header + data[8 + length :]

    yield 'checkpoint', ('.pth', changed_file)
    yield 'packed checkpoint', ('.pth', lambda rng: changed_packed(packed, rng))
    yield 'checkpoint of 8-bit integers', ('.pth', lambda rng: changed_packed(integers, rng))
    yield 'checkpoint of old torch', ('.pth', lambda rng: change_bytes(old, rng))
    yield 'safetensors', ('.safetensors', lambda rng: changed_safetensors(safe, network, rng))
    yield (
        'packed safetensors',
        (
            '.safetensors',
            lambda rng: changed_safetensors(compact, own.options, rng),
        ),
    )
    yield 'training state', ('.state', lambda rng: change_bytes(training_state, rng))


def _pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of small pictures in all formats and depths."""
    rng = np.random.default_rng(0)
    kinds = itertools.product(('PNG', 'TIFF'), (np.uint8, np.uint16), (1, 3), (False, True))
    others = [(form, np.uint8, 3, False) for form in ('JPEG', 'WEBP', 'BMP')]
    for form, dtype, channels, alpha in (*kinds, *others):
        pixels = rng.integers(0, np.iinfo(dtype).max, (24, 20, channels + alpha), dtype)
        picture = Picture(pixels[..., :channels], pixels[..., -1] if alpha else None, Encoding(form, form != 'JPEG'))
        name = f'{channels}{alpha:d}{dtype.__name__}.{form.lower()}'
        write_picture(folder / name, picture)
        yield name, (folder / name).read_bytes()
    frames = [Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)) for _ in range(3)]
    for form in ('PNG', 'WEBP', 'GIF', 'TIFF'):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        yield f'frames.{form.lower()}', buffer.getvalue()
    for form, suffix, options in (('TGA', 'tga', {}), ('PPM', 'ppm', {}), ('TIFF', 'tif', {'compression': 'tiff_lzw'})):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, **options)
        yield f'other.{suffix}', buffer.getvalue()
