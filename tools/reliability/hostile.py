"""Hostile files: code hidden in pickles and YAML, lengths that ask for all memory, names that lead elsewhere, bombs."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import itertools
import json
import os
import pickle
import random
import re
import runpy
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from basicsr_classpruning.cli import main
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.files import load_file
from tools.reliability.common import GIB, Child, Result
from tools.reliability.material import training, write_model, write_options

_MEMORY = 4 * GIB
_SECONDS = 10


def run(count: int, seed: int, folder: Path) -> Result:
    """Tries ``count`` of the hostile files, drawn at random where there are more."""
    trials = Trials(folder)
    for prepare in (trials.pickles, trials.yaml, trials.lengths, trials.names, trials.bombs):
        prepare()
    cases = trials.cases
    for case in random.Random(seed).sample(cases, count) if count < len(cases) else cases:
        trials.run(case)
    return trials.result


@dataclass(frozen=True)
class Case:
    """A command on a hostile file."""

    row: str
    name: str
    command: list[object]
    wanted: str
    """Regular expression that the line it ends with must match."""
    statuses: tuple[int, ...]


class _Reduces:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _payloads(marker: Path) -> dict[str, Any]:
    """By the name that must be in the refusal: an object, or the bytes of a pickle, that would create ``marker``."""
    touch, code = f'touch {marker}', f'open({str(marker)!r}, "w")'
    nested = io.BytesIO()
    torch.save(_Reduces(os.system, touch), nested)
    return {
        'system': _Reduces(os.system, touch),
        'eval': _Reduces(builtins.eval, code),
        'exec': _Reduces(builtins.exec, code),
        'Popen': _Reduces(subprocess.Popen, ['touch', str(marker)]),
        'partial': _Reduces(functools.partial, os.system, touch),
        'import_module': _Reduces(importlib.import_module, 'antigravity'),
        '_run_code': _Reduces(runpy._run_code, code, {}),  # type: ignore[attr-defined]
        '_load_from_bytes': _Reduces(torch.storage._load_from_bytes, nested.getvalue()),
        'getattr': _Reduces(builtins.getattr, 'x', 'join'),
        'INST system': f"(S'{touch}'\nios\nsystem\n.".encode(),
        'OBJ system': f"(cos\nsystem\nS'{touch}'\no.".encode(),
        'NEWOBJ Popen': f"csubprocess\nPopen\n(S'{touch}'\nt\x81.".encode(),
        'STACK_GLOBAL system': b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c'
        + bytes([len(touch)])
        + touch.encode()
        + b'\x85R.',
        'BUILD system': f"cos\nsystem\n(dS'x'\nS'{touch}'\nsb.".encode(),
    }


def _as_files(payload: Any, folder: Path) -> Iterator[Path]:
    """A payload among honest weights, in torch's two formats, and bare."""
    content = {'params': {'weight': torch.ones(4)}, 'more': payload}
    if isinstance(payload, bytes):
        torch.save({'params': {'weight': torch.ones(4)}}, folder / 'honest.pth')
        with zipfile.ZipFile(folder / 'honest.pth') as honest, zipfile.ZipFile(folder / 'zip.pth', 'w') as archive:
            for entry in honest.infolist():
                data = payload if entry.filename.endswith('data.pkl') else honest.read(entry)
                archive.writestr(entry.filename, data)
        (folder / 'bare.pth').write_bytes(payload)
        return iter((folder / 'zip.pth', folder / 'bare.pth'))
    torch.save(content, folder / 'zip.pth')
    torch.save(content, folder / 'zip4.pth', pickle_protocol=4)
    torch.save(content, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    (folder / 'bare.pth').write_bytes(pickle.dumps(payload))
    return iter(folder / name for name in ('zip.pth', 'zip4.pth', 'legacy.pth', 'bare.pth'))


class Trials:
    """Hands hostile files to the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / 'inner' / 'work'
        self.work.mkdir(parents=True)
        self.marker = folder / 'ran'
        self.result = Result()
        self.options = training(folder, (2, 0, 0), save_every=10)
        self.model = write_model(folder / 'model.pth')
        self.cases: list[Case] = []
        self._numbers = itertools.count()

    def _add(self, row: str, name: str, command: list[object], wanted: str, statuses: tuple[int, ...] = (1, 2)) -> None:
        self.cases.append(Case(row, name, command, wanted, statuses))

    def _new(self, name: str) -> Path:
        """A path of that name in a folder of its own."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        return folder / name

    def run(self, case: Case) -> None:
        """The command must end as it should, without running anything, writing outside its folder, or asking for much
        memory."""

        here = self.work / str(next(self._numbers))
        here.mkdir()

        def run_there() -> int:
            os.chdir(here)
            return main([str(argument) for argument in case.command])

        before = set(self.folder.rglob('*'))
        outcome = Child(run_there, _MEMORY).wait(_SECONDS)
        outside = [path for path in set(self.folder.rglob('*')) - before if self.work not in path.parents]
        complaint = outcome.complaint
        if self.marker.exists():
            complaint = 'code ran'
            self.marker.unlink()
        elif outside:
            complaint = f'wrote {outside[0]}'
        elif not complaint and outcome.status not in case.statuses:
            complaint = f'exit status {outcome.status}: {outcome.error}'
        elif not complaint and not re.search(case.wanted, outcome.error):
            complaint = f'not the wanted line: {outcome.error}'
        elif not complaint and outcome.peak > GIB:
            complaint = f'took {outcome.peak / GIB:.1f} GiB'
        self.result.row(case.row).add(complaint and f'{case.name}: {complaint}')

    def _analyze(self, path: Path) -> list[object]:
        return ['analyze', '--model', path, '--size', '3x16x16']

    def _train(self, **sections: Any) -> list[object]:
        return ['train', '-opt', write_options(self._new('x').parent, {**self.options, **sections})]

    def pickles(self) -> None:
        """Code in checkpoints and training states."""
        for name, payload in _payloads(self.marker).items():
            for path in _as_files(payload, self._new('x').parent):
                by_name = name.split()[-1] if path.stem != 'bare' else ''
                self._add('checkpoint that would run code', f'{name}, {path.name}', self._analyze(path), by_name, (1,))
                if path.stem != 'zip':
                    continue
                for key, row in (('pretrain_network_g', 'starting weights'), ('resume_state', 'training state')):
                    command = self._train(path={key: str(path)})
                    self._add(f'{row} that would run code', name, command, by_name, (1,))

    def yaml(self) -> None:
        """Code in options."""
        touch = f'touch {self.marker}'
        tags = (
            f'!!python/object/apply:os.system ["{touch}"]', f'!!python/object/new:os.system ["{touch}"]',
            '!!python/name:os.system ""', '!!python/module:antigravity ""', f'!!python/object/apply:eval ["{touch}"]',
            '!!python/object:argparse.Namespace {a: 1}', '!!python/tuple [1, 2]', '!!python/bytes "YQ=="',
            f'!!python/object/apply:subprocess.check_output [["touch", "{self.marker}"]]', '!custom {a: 1}',
        )  # fmt: skip
        for tag in tags:
            path = self._new('hostile.yml')
            path.write_text(f'name: x\nnetwork_g: {tag}\n')
            arch = [*self._analyze(self.model), '--arch', path]
            for row, command in (
                ('-opt', ['train', '-opt', path]),
                ('-opt', ['test', '-opt', path]),
                ('--arch', arch),
                ('--force_yml', [*self._train(), '--force_yml', f'name={tag}']),
            ):
                self._add(f'{row} with a YAML tag that makes objects', tag, command, 'tag .* is not allowed', (2,))
        for text in ('__import__("os").system("{}")', '[x for x in ().__class__.__bases__]', 'eval("{}")'):
            command = [*self._train(), '--force_yml', f'train:total_iter={text.format(touch)}']
            self._add('--force_yml that is an expression', text, command, 'total_iter|YAML', (2,))

    def lengths(self) -> None:
        """Small files that claim to be huge."""
        row = 'small file that asks for much memory'
        network = load_file(self.model)['network_g']
        base = network['base']
        weights = load_file(self.model)['params']
        contents: dict[str, Any] = {
            'expanded weights': {'params': {'weight': torch.ones(1).expand(10**11)}},
            'expanded weights of a known network': {
                'params': {
                    f'model.{i}.weight': torch.ones(1).expand(10**5, 10**5, 3, 3).transpose(0, 1) for i in (0, 2, 4)
                }
            },
            'sparse weights': {'params': {'weight': torch.sparse_coo_tensor(size=(10**6, 10**6))}},  # type: ignore[call-arg]
            'wide network': {'params': weights, 'network_g': {**network, 'base': {**base, 'num_feat': 10**6}}},
            'deep network': {'params': weights, 'network_g': {**network, 'base': {**base, 'num_conv': 10**9}}},
            'wide dense network': {'params': weights, 'network_g': {**base, 'num_feat': 10**6}},
            'wide classifier': {
                'params': weights,
                'network_g': {**network, 'classifier': {'type': 'DifficultyClassifier', 'num_feat': 10**6}},
            },
            'large groups': {'params': weights, 'network_g': {**network, 'candidates': ['1:1000000000000']}},
            'many packed weights': {
                'params': {'weight': torch.ones(1)},
                'packed': {
                    'params': {
                        f'w{i}': {
                            'values': torch.ones(0),
                            'mask': torch.zeros(9999, dtype=torch.uint8),
                            'shape': [79992],
                        }
                        for i in range(1000)
                    }
                },
            },
            'packed weight': {
                'params': {'weight': torch.ones(1)},
                'packed': {'params': {'w': {'values': torch.ones(1), 'mask': torch.ones(1).byte(), 'shape': [10**12]}}},
            },
        }
        for name, content in contents.items():
            path = self._new('long.pth')
            save_file(content, path)
            self._add(row, name, self._analyze(path), '.')
        for name, data in _long_files(self.folder):
            path = self._new(name)
            path.write_bytes(data)
            self._add(row, name, self._analyze(path), '.')

    def names(self) -> None:
        """Names that lead out of the folder they belong to."""
        row = 'name that leads elsewhere'
        keys = ['../../outside', '/tmp/outside', 'a/../../b', '..', 'a\\..\\b']
        for key in keys:
            root = self._new('keys.lmdb')
            root.mkdir()
            (root / 'data.mdb').touch()
            (root / 'meta_info.txt').write_text(f'{key}.png (40,48,3) 1\n')
            train = {**self.options['datasets']['train'], 'dataroot_gt': str(root), 'io_backend': {'type': 'lmdb'}}
            self._add(row, f'LMDB key {key}', self._train(datasets={'train': train}), 'key .* is not allowed', (2,))
        for name in ('../../outside', '/tmp/outside', '..', 'a/../../../b'):
            self._add(row, f'name: {name}', self._train(name=name), 'name: ', (2,))
        with zipfile.ZipFile(self.model) as source, zipfile.ZipFile(self.folder / 'slip.pth', 'w') as archive:
            for entry in source.infolist():
                archive.writestr(f'../../outside/{entry.filename}', source.read(entry))
        self._add(row, 'member of a checkpoint archive', self._analyze(self.folder / 'slip.pth'), '.', (1,))
        content = load_file(self.model)
        content['network_g']['candidates'][0] = '../../outside:4'
        save_file(content, self.folder / 'named.pth')
        command = ['export', '--model', self.folder / 'named.pth', '--to', 'onnx', '--out', self.work / 'onnx']
        self._add(row, 'candidate in a checkpoint', command, 'outside')

    def bombs(self) -> None:
        """Small pictures that claim to be large."""
        for name, content in _bombs():
            folder = self.folder / f'bomb {name}'
            folder.mkdir()
            (folder / name).write_bytes(content)
            command = ['restore', folder, '--model', self.model, '--output', self.work / 'out', '--backend', 'dense']
            self._add('picture bomb, restore', name, command, 'megapixels, above the limit of 200', (1,))
            train = {**self.options['datasets']['train'], 'dataroot_gt': str(folder)}
            self._add('picture bomb, training', name, self._train(datasets={'train': train}), name, (1,))
        folder = self.folder / 'large'
        folder.mkdir()
        cv2.imwrite(str(folder / 'large.png'), np.zeros((1000, 1000), np.uint8))
        command = ['restore', folder, '--model', self.model, '--output', self.work / 'large', '--backend', 'dense']
        limited = [*command, '--max-pixels', 999_999]
        self._add('limit of pixels, set by the user', 'above', limited, 'above the limit of 1.0', (1,))
        self._add('limit of pixels, set by the user', 'below', [*command, '--max-pixels', 1_000_000], '^$', (0,))


def _long_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files whose own book-keeping lies about lengths."""
    yield 'header.safetensors', struct.pack('<Q', 100 * GIB) + b'{}'
    for name, shape, end in (
        ('offsets', [10**5, 10**6], 4 * 10**11),
        ('shape', [10**5, 10**6], 4),
        ('end', [1], 2**63),
    ):
        header = json.dumps({'w': {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, end]}}).encode()
        yield f'{name}.safetensors', struct.pack('<Q', len(header)) + header + bytes(4)
    header = json.dumps({'__metadata__': {'packed': '{"w": [1000000, 1000000]}'}}).encode()
    yield 'packed.safetensors', struct.pack('<Q', len(header)) + header
    save_file({'params': {'weight': torch.zeros(4)}}, folder / 'honest.pth')
    bomb = io.BytesIO()
    with zipfile.ZipFile(folder / 'honest.pth') as honest, zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as archive:
        for entry in honest.infolist():
            zeros = entry.filename.endswith('data/0')
            archive.writestr(entry.filename, bytes(2**28) if zeros else honest.read(entry))
    yield 'deflated.pth', bomb.getvalue()
    legacy = io.BytesIO()
    torch.save({'params': {'weight': torch.zeros(4)}}, legacy, _use_new_zipfile_serialization=False)
    for size in (4, 8):  # the number of elements, in the pickle and before the data
        data = legacy.getvalue()
        place = data.rindex(struct.pack('<q', 4)) if size == 8 else data.index(b'K\x04')
        replacement = struct.pack('<q', 10**11) if size == 8 else b'\x8a\x05' + struct.pack('<q', 10**11)[:5]
        yield f'legacy{size}.pth', data[:place] + replacement + data[place + (8 if size == 8 else 2) :]


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Pictures of a few hundred bytes whose headers claim 60,000 × 60,000 pixels (WebP: its largest)."""
    side = 60_000
    chunks = b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in (
            (b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)),
            (b'IDAT', zlib.compress(bytes(10_000))),
            (b'IEND', b''),
        )
    )
    yield 'bomb.png', b'\x89PNG\r\n\x1a\n' + chunks
    small = Image.new('RGB', (8, 8))
    for form, name in (('JPEG', 'bomb.jpg'), ('BMP', 'bomb.bmp'), ('TIFF', 'bomb.tif'), ('WEBP', 'bomb.webp')):
        buffer = io.BytesIO()
        small.save(buffer, form)
        data = bytearray(buffer.getvalue())
        if form == 'JPEG':
            start = data.index(b'\xff\xc0') + 5
            data[start : start + 4] = struct.pack('>HH', side, side)
        elif form == 'BMP':
            data[18:26] = struct.pack('<ii', side, side)
        elif form == 'TIFF':
            for tag in (256, 257):
                start = data.index(struct.pack('<HHI', tag, 4, 1)) + 8
                data[start : start + 4] = struct.pack('<I', side)
        else:
            start = data.index(b'\x9d\x01\x2a') + 3
            data[start : start + 4] = struct.pack('<HH', 16383, 16383)
        yield name, bytes(data)
    frame = b',' + struct.pack('<HHHHB', 0, 0, side, side, 0) + b'\x08\x02\x4c\x01\x00'
    yield 'bomb.gif', b'GIF89a' + struct.pack('<HHBBB', side, side, 0, 0, 0) + frame + b';'
    yield 'bomb.tga', struct.pack('<BBBHHBHHHHBB', 0, 0, 2, 0, 0, 0, 0, 0, side, side, 24, 0x20)
    yield 'bomb.ppm', f'P6 {side} {side} 65535 '.encode()
