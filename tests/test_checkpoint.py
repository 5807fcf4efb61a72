"""Checkpoint files: what is read, what is refused, and that they are written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pickle
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file as save_safetensors

from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.safe_files import save_file, write_atomically
from basicsr_classpruning.untrusted.files import load_file

WEIGHTS = {'conv.weight': torch.arange(36.0).reshape(1, 4, 3, 3), 'conv.bias': torch.ones(1)}
AVERAGED = {key: value + 1 for key, value in WEIGHTS.items()}
NETWORK = {'type': 'EDSR', 'num_feat': 4}


def saved(tmp_path: Path, content: object, name: str = 'net.pth') -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


# ------------------------------------------------------------------------- reading


def test_basicsr_format(tmp_path):
    path = saved(tmp_path, {'params': WEIGHTS, 'params_ema': AVERAGED, 'network_g': NETWORK})
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.params(), AVERAGED)
    assert same(checkpoint.params('params'), WEIGHTS)
    assert checkpoint.network_g == NETWORK
    assert checkpoint.path == str(path)


def test_what_is_not_there_falls_back(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, {'params': WEIGHTS}))
    assert same(checkpoint.params('params_ema'), WEIGHTS)
    assert checkpoint.network_g is None


@pytest.mark.parametrize(
    'wrap',
    [
        lambda weights: weights,
        lambda weights: {f'module.{key}': value for key, value in weights.items()},
        lambda weights: {'state_dict': weights, 'epoch': 3},
        lambda weights: {'params': {f'module.{key}': value for key, value in weights.items()}},
    ],
    ids=['raw', 'module.', 'state_dict', 'params with module.'],
)
def test_formats_of_other_programs(tmp_path, wrap):
    assert same(read_checkpoint(saved(tmp_path, wrap(WEIGHTS))).params(), WEIGHTS)


def test_the_format_of_old_torch(tmp_path):
    torch.save({'params': WEIGHTS}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / 'old.pth').params(), WEIGHTS)


def test_safetensors(tmp_path):
    save_safetensors(WEIGHTS, tmp_path / 'a.safetensors')
    save_safetensors(WEIGHTS, tmp_path / 'b.safetensors', {'network_g': '{"type": "EDSR", "num_feat": 4}'})
    assert same(read_checkpoint(tmp_path / 'a.safetensors').params(), WEIGHTS)
    assert read_checkpoint(tmp_path / 'a.safetensors').network_g is None
    assert read_checkpoint(tmp_path / 'b.safetensors').network_g == NETWORK


# ------------------------------------------------------------------------- refusing


class Runs:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, zipped, protocol):
    marker, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    content = {'params': WEIGHTS, 'more': Runs(marker)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf'^{path}: refused: it holds (posix|os)\.system, which .* could run code$'):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_bare_pickle_that_would_run_code_is_refused(tmp_path):
    marker, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    path.write_bytes(pickle.dumps(Runs(marker), protocol=2))
    with pytest.raises(UserError, match=r'refused|not a checkpoint'):
        read_checkpoint(path)
    assert not marker.exists()


def test_weights_of_another_pickle_protocol_are_told_apart_from_code(tmp_path):
    torch.save({'params': WEIGHTS}, tmp_path / 'new.pth', pickle_protocol=4)
    with pytest.raises(UserError, match='its pickle protocol is 4; torch reads weights of protocol 2'):
        read_checkpoint(tmp_path / 'new.pth')


@pytest.mark.parametrize(
    ('weight', 'message'),
    [
        (torch.ones(1).expand(10**11), r'a file of 1,\d+ bytes whose weights claim 400,000,000,000'),
        (torch.eye(3).to_sparse(), "weight 'w' is no plain tensor"),
        (torch.empty(10**6, 10**6, device='meta'), "weight 'w' is no plain tensor"),
    ],
)
def test_weights_that_claim_more_than_the_file_holds(tmp_path, weight, message):
    with pytest.raises(UserError, match=message):
        read_checkpoint(saved(tmp_path, {'params': {'w': weight}}))


def test_objects_of_training_scripts_are_named(tmp_path):
    path = saved(tmp_path, {'state_dict': WEIGHTS, 'args': argparse.Namespace(lr=1)})
    with pytest.raises(UserError, match=r'refused: it holds argparse\.Namespace'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'a list where a dictionary of weights is wanted'),
        (torch.ones(2), 'a Tensor where'),
        ({}, 'no weights found: it has nothing'),
        ({'epoch': 1, 'params': {}}, "no weights found: it has 'epoch', 'params'"),
        ({'params': {'a': 'text'}}, "no weights found: it has 'params'"),
        ({1: torch.ones(1)}, 'no weights found: it has 1'),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_checkpoint(saved(tmp_path, content))


def test_options_that_hold_more_than_plain_values(tmp_path):
    """A damaged pickle may put one of its objects in the place of another."""
    path = saved(tmp_path, {'params': WEIGHTS, 'network_g': {**NETWORK, 'num_in_ch': {'weight': torch.ones(3, 3)}}})
    with pytest.raises(UserError, match=r'net\.pth: network_g: damaged: wanted numbers, texts'):
        read_checkpoint(path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04', b'\x80\x02}q\x00.', b'\xff' * 100])
def test_files_that_are_no_checkpoints(tmp_path, suffix, content):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_checkpoint(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_missing_files_and_folders(tmp_path, suffix):
    with pytest.raises(UserError, match='no such file'):
        read_checkpoint(tmp_path / f'none{suffix}')
    (tmp_path / f'folder{suffix}').mkdir()
    with pytest.raises(UserError, match=r'a folder|not a safetensors file'):
        read_checkpoint(tmp_path / f'folder{suffix}')


def damaged_files(whole: bytes) -> Iterator[bytes]:
    for part in range(20):
        yield whole[: len(whole) * part // 20]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        position, bit = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 8))
        yield whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_damaged_file_is_one_line_or_still_readable(tmp_path, suffix):
    path = tmp_path / f'net{suffix}'
    if suffix == '.pth':
        torch.save({'params': WEIGHTS, 'network_g': NETWORK}, path)
    else:
        save_safetensors(WEIGHTS, path)
    whole = path.read_bytes()
    refusals = []
    for content in damaged_files(whole):
        path.write_bytes(content)
        try:
            read_checkpoint(path).params()
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) >= 20  # at least whatever was cut short
    assert all(refusal.startswith(f'{path}: ') and '\n' not in refusal for refusal in refusals)


# -------------------------------------------------------------------------- writing


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A disk that is full after some bytes: Python ignores the signal, so writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writing_replaces_the_old_file(tmp_path):
    path = tmp_path / 'net.pth'
    for weights in (WEIGHTS, AVERAGED):
        save_file({'params': weights}, path)
        assert same(load_file(path)['params'], weights)
    assert os.listdir(tmp_path) == ['net.pth']


def test_written_files_have_the_usual_rights(tmp_path):
    before = os.umask(0o027)
    try:
        save_file({}, tmp_path / 'net.pth')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'net.pth').stat().st_mode) == 0o640


@pytest.mark.parametrize('size', [0, 1 << 12, 1 << 16, 1 << 19])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, size):
    path = tmp_path / 'net.pth'
    save_file({'params': WEIGHTS}, path)
    with no_file_larger_than(size), pytest.raises(UserError) as raised:
        save_file({'params': {'large': torch.rand(1 << 18)}}, path)
    assert str(raised.value).startswith(f'{path}: could not be written: ')
    assert '\n' not in str(raised.value)
    assert same(load_file(path)['params'], WEIGHTS)
    assert os.listdir(tmp_path) == ['net.pth']


@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failure_at_the_last_moment(tmp_path, monkeypatch, call, code):
    path = tmp_path / 'net.pth'
    path.write_bytes(b'old')

    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=os.strerror(code)):
        write_atomically(path, lambda file: file.write(b'new'))
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['net.pth']


def test_an_interruption_while_writing(tmp_path):
    path = tmp_path / 'net.pth'
    path.write_bytes(b'old')

    def interrupt(file) -> None:
        file.write(b'half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupt)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['net.pth']


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / 'net.pth'

    def write(file) -> None:
        file.write(b'new')
        file.flush()
        assert not path.exists()

    write_atomically(path, write)
    assert path.read_bytes() == b'new'


@pytest.mark.parametrize('place', ['missing/net.pth', 'file/net.pth'])
def test_folders_that_cannot_be_written_to(tmp_path, place):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=rf'^{tmp_path / place}: could not be written: '):
        save_file({}, tmp_path / place)
