"""Checkpoints and safetensors files with packed weights: exact, resumable, and refused in one line when they lie."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from calibrated import build, images

import basicsr_classpruning
from basicsr_classpruning.checkpoint import read_checkpoint, write_checkpoint
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.loading import load_classpruning
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.untrusted.bitmask import pack


def test_a_checkpoint_with_own_weights_is_packed_and_read_back_exactly(tmp_path):
    net = build('MSRResNet', num_feat=32)
    averaged = {key: value * 0.5 for key, value in net.state_dict().items()}
    path = tmp_path / 'model.pth'
    write_checkpoint(path, {'params': net.state_dict(), 'params_ema': averaged}, net.options)
    content = torch.load(path, weights_only=True)
    assert set(content) == {'params', 'params_ema', 'packed', 'network_g'}
    assert {'base.body.0.conv1.weights.0', 'base.body.0.conv1.weights.1'} <= set(content['packed']['params'])
    assert 'base.body.0.conv1.weight' in content['params']
    checkpoint = read_checkpoint(path)
    for name, wanted in (('params', net.state_dict()), ('params_ema', averaged)):
        assert checkpoint.weights[name].keys() == wanted.keys()
        assert all(torch.equal(checkpoint.weights[name][key], value) for key, value in wanted.items())
    x = images(3)
    with torch.no_grad():
        restored = basicsr_classpruning.load(path).restore_with(x, '2:4')
    halved = load_classpruning(net.options, averaged).eval()
    assert torch.equal(restored, halved.restore_with(x, '2:4'))


def test_training_a_network_that_was_read_is_bit_for_bit_training_the_one_that_was_written(tmp_path):
    """Packing loses the sign of zeros; no weight may come to depend on it."""
    net = build('DnCNN', num_feat=32)
    write_checkpoint(tmp_path / 'model.pth', {'params': net.state_dict()}, net.options)
    read = basicsr_classpruning.load(tmp_path / 'model.pth')
    assert 'base.model.2.weights.0' in torch.load(tmp_path / 'model.pth', weights_only=True)['packed']['params']
    for network in (net, read):
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
        for step in range(6):
            optimiser.zero_grad()
            network.run_sparse(images(1), step % 3).square().mean().backward()
            optimiser.step()
    for (key, mine), other in zip(net.state_dict().items(), read.state_dict().values()):
        assert torch.equal(mine, other), key
        values = mine[mine != 0], other[other != 0]
        assert torch.equal(*(part.view(torch.int32) for part in values)), key


def test_files_of_other_networks_are_dense_for_basicsr(tmp_path):
    weight = torch.zeros(64, 64)
    for options in (None, {'type': 'EDSR'}):
        write_checkpoint(tmp_path / 'dense.pth', {'params': {'weight': weight}}, options)
        content = torch.load(tmp_path / 'dense.pth', weights_only=True)
        assert torch.equal(content['params']['weight'], weight)
        assert 'packed' not in content


def test_a_slice_of_a_large_tensor_is_written_without_the_rest(tmp_path):
    write_checkpoint(tmp_path / 'x.pth', {'params': {'weight': torch.ones(1000, 1000)[0]}}, None)
    assert (tmp_path / 'x.pth').stat().st_size < 10_000


GOOD = {'values': torch.ones(2), 'mask': torch.tensor([3], dtype=torch.uint8), 'shape': [8]}


@pytest.mark.parametrize(
    ('packed', 'message'),
    [
        ({'params': {'w': {**GOOD, 'shape': [10**12]}}}, "packed weight 'w': damaged: a mask of 1 bytes"),
        ({'params': {'w': {**GOOD, 'shape': 8}}}, 'wanted values, mask and shape'),
        ({'params': {'w': {**GOOD, 'shape': torch.zeros(1).expand(10**11)}}}, 'wanted values, mask and shape'),
        ({'params': {'w': {**GOOD, 'values': torch.ones(3)}}}, 'marks 2 values, but there are 3'),
        ({'params': {'w': {**GOOD, 'mask': torch.zeros(1, dtype=torch.uint8).expand(10**11)}}}, 'contiguous row'),
        ({'params': {'w': {**GOOD, 'extra': 1}}}, 'wanted values, mask and shape'),
        ({'params': {'w': torch.ones(1)}}, 'wanted values, mask and shape'),
        ({'params': {'plain': GOOD}}, "weight 'plain' is there twice"),
        ({'params': [GOOD]}, 'packed: damaged'),
        ([GOOD], 'packed: damaged'),
    ],
)
def test_damaged_packed_checkpoints_are_refused_in_one_line(tmp_path, packed, message):
    save_file({'params': {'plain': torch.ones(1)}, 'packed': packed}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(tmp_path / 'x.pth')
    assert '\n' not in str(caught.value)


def test_a_bit_that_was_flipped_in_a_weight_is_noticed(tmp_path):
    net = build('DnCNN')
    write_checkpoint(tmp_path / 'x.pth', {'params': net.state_dict()}, net.options)
    content = bytearray((tmp_path / 'x.pth').read_bytes())
    with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(UserError, match=r'x\.pth: damaged \(.*\)$'):
        read_checkpoint(tmp_path / 'x.pth')


def test_many_weights_that_share_one_mask_are_refused(tmp_path):
    entry = {'values': torch.ones(0), 'mask': torch.zeros(100_000, dtype=torch.uint8), 'shape': [800_000]}
    packed = {'params': {f'w{i}': entry for i in range(10_000)}}  # 32 GB in 100 KB of mask
    save_file({'params': {'plain': torch.ones(1)}, 'packed': packed}, tmp_path / 'x.pth')
    assert (tmp_path / 'x.pth').stat().st_size < 2e6
    with pytest.raises(UserError, match='more masks than the file can hold'):
        read_checkpoint(tmp_path / 'x.pth')


def compressed(path: Path, weight: torch.Tensor) -> Path:
    """A checkpoint whose archive was compressed after it was written."""
    save_file({'params': {'weight': weight}}, path)
    result = path.with_suffix('.zip.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(result, 'w', zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return result


def test_an_archive_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path):
    bomb = compressed(tmp_path / 'x.pth', torch.zeros(1000, 1000))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(UserError, match=r'refused: a file of \d,\d+ bytes that claims to hold 4,0'):
        read_checkpoint(bomb)


def test_a_compressed_archive_of_weights_is_read(tmp_path):
    weight = torch.randn(64, 64)
    path = compressed(tmp_path / 'x.pth', weight)
    assert path.stat().st_size < weight.nbytes
    assert torch.equal(read_checkpoint(path).params()['weight'], weight)


def compact_file(path: Path, **metadata) -> Path:
    """A packed weight of 64 × 64, with metadata of the caller's choice."""
    from safetensors.torch import save_file as save

    weight = torch.randn(64, 64) * (torch.rand(64, 64) < 0.25)
    packed = pack(weight)
    save({'w:values': packed.values, 'w:mask': packed.mask, 'bias': torch.ones(64)}, path, metadata)
    return path


@pytest.mark.parametrize(
    ('packed', 'message'),
    [
        ({'w': [10**6, 10**6]}, r"weight 'w': damaged: a mask of 512 bytes does not fit 1000000000000 elements"),
        ({'w': [64, 65]}, 'does not fit'),
        ({'w': [-64, -64]}, 'whole numbers'),
        ({'w': 'abc'}, 'wanted values, mask and shape'),
        ({'w': {'0': 1}}, 'wanted values, mask and shape'),
        ({'w': [64, 64], 'v': [2]}, "weight 'v': damaged: the values are no plain tensor"),
        ({'w': [64, 64], 'bias': [64]}, "weight 'bias': damaged"),
        ([1], 'wanted the shapes'),
    ],
)
def test_damaged_compact_files_are_refused_in_one_line(tmp_path, packed, message):
    path = compact_file(tmp_path / 'x.safetensors', packed=json.dumps(packed))
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('text', ['{', '[' * 100_000, '\x00'])
def test_metadata_that_is_no_json_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(UserError, match='damaged'):
        read_checkpoint(compact_file(tmp_path / 'x.safetensors', packed=text))
