"""From a checkpoint file to a network."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from tiny import NETWORKS, SHARED, classpruning, dense, scale_of
from torch import nn

import basicsr_classpruning
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.safe_files import save_file

X = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
SPANDREL_DNCNN = {'type': 'DnCNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_conv': 17}


def saved(path: Path, net: nn.Module, **content) -> Path:
    save_file({'params': net.state_dict(), **content}, path)
    return path


def test_a_classpruning_file_is_enough(tmp_path):
    net = classpruning('EDSR')
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', net, network_g=net.options))
    assert isinstance(loaded, ClassPruning)
    assert not loaded.training
    assert torch.equal(loaded(X), net(X))


def test_averaged_weights_are_preferred(tmp_path):
    net, averaged = classpruning('EDSR'), classpruning('EDSR', seed=1)
    path = saved(tmp_path / 'net.pth', net, params_ema=averaged.state_dict(), network_g=net.options)
    assert torch.equal(basicsr_classpruning.load(path)(X), averaged(X))


@pytest.mark.parametrize('name', NETWORKS)
def test_dense_files_with_an_architecture(tmp_path, name):
    plain = dense(name)
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', plain), arch=NETWORKS[name])
    assert isinstance(loaded, DenseNetwork)
    assert (loaded.num_in_ch, loaded.scale) == (3, scale_of(name))
    x = X[:, :, :8, :12]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), plain(x), atol=1e-5, rtol=1e-4)
    assert loaded(X).shape == (2, 3, 9 * loaded.scale, 14 * loaded.scale)
    assert loaded.macs(16, 16).dense > 0


def test_a_dense_file_that_says_what_it_is(tmp_path):
    plain = dense('EDSR')
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', plain, network_g=NETWORKS['EDSR']))
    with torch.no_grad():
        assert torch.equal(loaded(X), plain(X))


def test_a_dense_file_with_a_classpruning_architecture(tmp_path):
    plain = dense('EDSR')
    arch = {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': ['1:4', '4:4']}
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', plain), arch=arch)
    with torch.no_grad():
        assert torch.equal(loaded.restore_with(X, '4:4'), plain(X))


@pytest.mark.parametrize('options', [SPANDREL_DNCNN, NETWORKS['NAFNet']], ids=['DnCNN', 'NAFNet'])
def test_spandrel_finds_out_what_a_dense_file_is(tmp_path, options):
    torch.manual_seed(0)
    plain = build_network(options).eval()
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', plain))
    assert isinstance(loaded, DenseNetwork)
    assert loaded.options == {'type': 'Spandrel', 'architecture': options['type']}
    assert (loaded.num_in_ch, loaded.scale) == (3, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), plain(X), atol=1e-5, rtol=1e-4)


def test_a_pruned_network_that_spandrel_detected_is_loaded_again(tmp_path):
    torch.manual_seed(0)
    plain = basicsr_classpruning.load(saved(tmp_path / 'dense.pth', build_network(NETWORKS['NAFNet'])))
    net = ClassPruning(plain.options, ['1:4', '2:4', '4:4'], base_net=plain.net).eval()
    loaded = basicsr_classpruning.load(saved(tmp_path / 'net.pth', net, network_g=net.options))
    for candidate in net.candidates:
        assert torch.equal(loaded.restore_with(X, candidate), net.restore_with(X, candidate))


def test_a_network_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / 'somebodys_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n'
        'from torch import nn\n'
        '@ARCH_REGISTRY.register()\n'
        'class UsersNet(nn.Sequential):\n'
        '    def __init__(self, width):\n'
        '        super().__init__(nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 3, 3, 1, 1))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {'type': 'UsersNet', 'width': 4}
    path = tmp_path / 'net.pth'
    save_file({'params': {'0.weight': torch.ones(4, 3, 3, 3)}, 'network_g': options}, path)
    with pytest.raises(UsageError, match=r"'UsersNet' is not in ARCH_REGISTRY"):
        basicsr_classpruning.load(path)  # the file alone imports nothing
    assert 'somebodys_arch' not in sys.modules
    with pytest.raises(UserError, match=r'0\.bias is missing'):
        basicsr_classpruning.load(path, imports=['somebodys_arch'])
    torch.manual_seed(0)
    net = build_network(options)
    assert torch.equal(basicsr_classpruning.load(saved(path, net, network_g=options))(X), net(X))


@pytest.mark.parametrize(
    ('weights', 'arch', 'error', 'message'),
    [
        ({'a': torch.ones(1)}, None, UsageError, r'neither in the file nor detected; name it with `arch`'),
        ({'a': torch.ones(1)}, {'type': 'EDVR'}, UsageError, 'EDVR cannot be pruned'),
        ({'a': torch.ones(1)}, {'type': 'NoSuchNet'}, UsageError, 'NoSuchNet'),
        ({'a': torch.ones(1)}, {**NETWORKS['EDSR'], 'colour': 1}, UsageError, 'colour'),
        ({'a': torch.ones(1)}, NETWORKS['EDSR'], UserError, r'conv_first\.weight is missing \(and'),
        ({'a': torch.ones(1)}, NETWORKS['ECBSR'], UserError, 'is missing'),
        ({'a': torch.ones(1)}, {'type': 'ClassPruning'}, UsageError, 'missing .* required'),
        (
            {'a': torch.ones(1)}, {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': ['1:4'], 'x': 1},
            UsageError, "unexpected keyword argument 'x'",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_with_the_file(tmp_path, weights, arch, error, message):
    path = tmp_path / 'net.pth'
    save_file({'params': weights}, path)
    with pytest.raises(error, match=message) as raised:
        basicsr_classpruning.load(path, arch=arch)
    assert str(raised.value).startswith(f'{path}: ')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'network_g',
    [
        {'type': 'ClassPruning', 'base': 'EDSR', 'candidates': ['1:4']},
        {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': 4},
        {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': ['1:4'], 'skip': ['(']},
        {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': ['1:4'], 'classifier': {'num_feat': 8}},
        {'type': 'ClassPruning', 'base': {'type': ['EDSR']}, 'candidates': ['1:4']},
        {'type': ['EDSR']},
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 'many'},
    ],
)
def test_options_that_are_nonsense_are_one_line(tmp_path, network_g):
    path = saved(tmp_path / 'net.pth', dense('EDSR'), network_g=network_g)
    with pytest.raises(UsageError) as raised:
        basicsr_classpruning.load(path)
    assert str(raised.value).startswith(f'{path}: ')
    assert '\n' not in str(raised.value)


def test_modules_that_cannot_be_imported_are_named(tmp_path):
    with pytest.raises(UsageError, match='no_such_module cannot be imported'):
        basicsr_classpruning.load(tmp_path / 'net.pth', imports=['no_such_module'])


def test_loading_runs_no_code_of_the_file(tmp_path):
    path = tmp_path / 'net.pth'
    path.write_bytes(pickle.dumps({'params': {}, 'network_g': print}, protocol=2))
    with pytest.raises(UserError):
        basicsr_classpruning.load(path)


PUBLISHED = {
    'realesr-animevideov3.pth': {
        'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_conv': 16, 'upscale': 4,
        'act_type': 'prelu',
    },
    'dncnn_gray_sigma25.pth': {'type': 'DnCNN', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 64, 'num_conv': 17},
}  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_checkpoints(name):
    path = SHARED / 'checkpoints' / name
    if not path.exists():
        pytest.skip(f'{path} is not there')
    options = PUBLISHED[name]
    plain = build_network(options).eval()
    content = torch.load(path, map_location='cpu', weights_only=True)
    plain.load_state_dict(content.get('params', content))
    arch = {'type': 'ClassPruning', 'base': options, 'candidates': ['4:16', '8:16', '16:16']}
    net = basicsr_classpruning.load(path, arch=arch)
    alone, detected = basicsr_classpruning.load(path, arch=options), basicsr_classpruning.load(path)
    x = torch.rand(2, options['num_in_ch'], 23, 17)
    with torch.no_grad():
        wanted = plain(x)
        assert torch.equal(net.restore_with(x, '16:16'), wanted)
        assert torch.equal(alone(x), wanted)
        torch.testing.assert_close(detected(x), wanted, atol=1e-5, rtol=1e-4)
        assert not torch.equal(net.restore_with(x, '4:16'), wanted)


@pytest.mark.parametrize(
    'options',
    [
        {'base': {**NETWORKS['DnCNN'], 'num_feat': 10**6}},
        {'base': {**NETWORKS['DnCNN'], 'num_conv': 10**9}},
        {'classifier': {'type': 'DifficultyClassifier', 'num_feat': 10**6}},
        {'type': 'DnCNN', 'num_feat': 10**6},
    ],
)
def test_options_that_ask_for_a_network_far_larger_than_the_weights_are_refused(tmp_path, options):
    net = classpruning('DnCNN')
    path = saved(tmp_path / 'net.pth', net, network_g={**net.options, **options})
    if options.get('type') == 'DnCNN':
        path = saved(tmp_path / 'net.pth', net, network_g=options)
    with pytest.raises(UserError, match='its options ask for a network far larger than its weights'):
        basicsr_classpruning.load(path)


def test_a_network_that_makes_enormous_images_of_small_ones_is_refused(tmp_path):
    options = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2**12}
    path = saved(tmp_path / 'net.pth', build_network(dict(options)), network_g=options)
    with pytest.raises(UserError, match='its network makes enormous images of small ones'):
        basicsr_classpruning.load(path)
