"""Where other programs put a network's weights, and how they name them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from tiny import NETWORKS, dense

import basicsr_classpruning
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.spandrel_adapter import detect
from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.untrusted.containers import variants
from basicsr_classpruning.untrusted.files import load_file

WEIGHTS = {'conv.weight': torch.arange(36.0).reshape(1, 4, 3, 3), 'conv.bias': torch.ones(1)}
AVERAGED = {key: value + 1 for key, value in WEIGHTS.items()}
OPTIMIZER = {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}], 'named': {'m': torch.ones(3)}}
X = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))
EDSR = NETWORKS['EDSR']


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / 'net.pth')
    return tmp_path / 'net.pth'


def run_command(*call: object) -> int:
    return main([str(word) for word in call])


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


# ------------------------------------------------------------------------- containers


@pytest.mark.parametrize(
    ('content', 'taken'),
    [
        ({'model': WEIGHTS}, 'model'),
        ({'net': WEIGHTS, 'epoch': 3, 'optimizer': OPTIMIZER}, 'net'),
        ({'generator': WEIGHTS, 'best': torch.tensor(31.0), 'losses': {'l1': torch.tensor(0.1)}}, 'generator'),
        ({'checkpoint': {'model': WEIGHTS, 'optimizer': OPTIMIZER}}, 'checkpoint.model'),
        ({'model': AVERAGED, 'model_ema': WEIGHTS}, 'model_ema'),
        ({'net_g': AVERAGED, 'ema': {'net_g': WEIGHTS}, 'net_d': AVERAGED}, 'ema.net_g'),
    ],
)
def test_the_only_dictionary_of_tensors_is_taken_and_named(tmp_path, caplog, content, taken):
    path = saved(tmp_path, content)
    assert same(read_checkpoint(path).params(), WEIGHTS)
    assert caplog.messages == [f'{path}: weights taken from {taken!r}']


@pytest.mark.parametrize(
    'content',
    [
        {'params-ema': WEIGHTS, 'params': AVERAGED},
        {'params': WEIGHTS, 'model': AVERAGED},
        {'state_dict': WEIGHTS, 'optimizer_states': [OPTIMIZER], 'teacher': AVERAGED},
        {**WEIGHTS, 'epoch': 3, 'psnr': 31.5, 'name': 'x', 'none': None},
        {**WEIGHTS, 'psnr': np.float64(31.5), 'mean': np.ones(3), 'iteration': np.int64(3)},
        {'params': WEIGHTS, 'best': {'psnr': np.float32(31.5)}},
        {f'module._orig_mod.{key}': value for key, value in WEIGHTS.items()},
        {'params': {f'_orig_mod.module.{key}': value for key, value in WEIGHTS.items()}},
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_the_ordinary_is_taken_without_a_word(tmp_path, caplog, content, zipped):
    torch.save(content, tmp_path / 'net.pth', _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / 'net.pth').params(), WEIGHTS)
    assert caplog.messages == []


def test_several_networks_are_named_by_the_user(tmp_path):
    path = saved(tmp_path, {'net_g': WEIGHTS, 'net_d': AVERAGED})
    with pytest.raises(UserError, match=r'holds several networks; name one with `param_key` .*: net_g, net_d$'):
        read_checkpoint(path).params()
    assert same(read_checkpoint(path, 'net_d').params(), AVERAGED)
    assert same(read_checkpoint(path).params('net_d'), AVERAGED)  # as BasicSR's path.param_key_g
    with pytest.raises(UserError, match=r'`param_key` net_x: no weights there; it holds net_g, net_d$'):
        read_checkpoint(path, 'net_x')


@pytest.mark.parametrize('key', ['state_dict.generator', 'generator'])
def test_a_key_may_end_in_a_prefix_of_names(tmp_path, key):
    content = {f'generator.{key}': value for key, value in WEIGHTS.items()}
    content |= {f'vgg.{key}': value for key, value in AVERAGED.items()}
    assert same(read_checkpoint(saved(tmp_path, {'state_dict': content}), key).params(), WEIGHTS)


# --------------------------------------------------------------------------- prefixes


def prefixed(prefix: str, state_dict: dict, **more: torch.Tensor) -> dict:
    return {**{f'{prefix}{key}': value for key, value in state_dict.items()}, **more}


@pytest.mark.parametrize('prefix', ['generator.', 'model.', 'net_g.', '_orig_mod.', 'module.', 'model.net_g.'])
@pytest.mark.parametrize('name', ['EDSR', 'ECBSR', 'DnCNN'])
def test_a_prefix_of_all_names_is_removed(tmp_path, prefix, name):
    plain = dense(name)
    path = saved(tmp_path, {'state_dict': prefixed(prefix, plain.state_dict()), 'optimizer_states': [OPTIMIZER]})
    pruned = {'type': 'ClassPruning', 'base': NETWORKS[name], 'candidates': ['1:4', '4:4']}
    with torch.no_grad():
        torch.testing.assert_close(basicsr_classpruning.load(path, NETWORKS[name])(X), plain(X), rtol=1e-5, atol=1e-5)
        found = basicsr_classpruning.load(path, pruned).restore_with(X, '4:4')
        torch.testing.assert_close(found, plain(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'state_dict',
    [
        lambda state: prefixed('net_g.', state),
        lambda state: prefixed('net_g.', state, steps=torch.tensor(3), **{'vgg.weight': torch.ones(2, 2)}),
        lambda state: {**prefixed('g.', {k: v + 1 for k, v in state.items()}), **prefixed('g_ema.', state)},
        lambda state: {**state, 'steps': torch.tensor(3)},
    ],
    ids=['prefix', 'more beside', 'averaged', 'counter'],
)
@pytest.mark.parametrize('named', [True, False])
def test_a_network_beside_others_is_found(tmp_path, state_dict, named):
    options = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 3, 'upscale': 2}
    plain = build_network(dict(options)).eval()
    if not named:
        pytest.importorskip('spandrel')
    path = saved(tmp_path, {'state_dict': state_dict(plain.state_dict())})
    with torch.no_grad():
        found = basicsr_classpruning.load(path, options if named else None)(X)
        torch.testing.assert_close(found, plain(X), rtol=1e-5, atol=1e-5)


def test_a_network_whose_only_part_is_called_model_keeps_its_names(tmp_path):
    torch.manual_seed(0)
    old = old_names(build_network(dict(RRDBNET)).state_dict())
    assert {key.split('.')[0] for key in old} == {'model'}
    with torch.no_grad():
        wanted = basicsr_classpruning.load(saved(tmp_path, old))(X)
        found = basicsr_classpruning.load(saved(tmp_path, {'state_dict': prefixed('model.', old)}))(X)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize('prefix', ['module.' * 10**5, 'a.' * 10**5])
def test_a_name_of_endless_prefixes_is_not_followed_for_ever(tmp_path, prefix):
    path = saved(tmp_path, {f'{prefix}weight': torch.ones(2, 2)})
    assert len(list(variants(read_checkpoint(path).params()))) < 10
    with pytest.raises(UserError):
        basicsr_classpruning.load(path)


@pytest.mark.parametrize('command', ['analyze', 'export'])
def test_the_key_is_an_option_of_every_command(tmp_path, capsys, command):
    state = dense('EDSR').state_dict()
    path = saved(tmp_path, {'net_g': state, 'net_d': AVERAGED})
    (tmp_path / 'arch.yml').write_text(f'network_g: {EDSR}')
    call = {
        'analyze': ['analyze', '--model', path, '--size', '3x16x16'],
        'export': ['export', '--model', path, '--to', 'basicsr', '--out', tmp_path / 'out.pth'],
    }[command]
    assert run_command(*call, '--arch', tmp_path / 'arch.yml', '--param-key', 'net_g') == 0
    assert run_command(*call, '--arch', tmp_path / 'arch.yml') == 1
    assert '--param-key' in capsys.readouterr().err


# ------------------------------------------------------------------------------ kinds


def test_a_torchscript_program_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / 'net.pt'
    torch.jit.trace(dense('EDSR'), X).save(path)
    with pytest.raises(UserError, match=rf'^{path}: refused: a TorchScript program, which holds code; .*state_dict'):
        read_checkpoint(path)


def test_torchs_first_format_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / 'net.pth'
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            (tmp_path / name).write_bytes(b'\x80\x02}.')
            archive.add(tmp_path / name, name)
    with pytest.raises(UserError, match=rf"^{path}: refused: torch's tar format of 2016"):
        read_checkpoint(path)


def test_values_of_numpy_are_left_out_of_checkpoints_only(tmp_path):
    path = saved(tmp_path, {'best': np.float64(1)})
    with pytest.raises(UserError, match=r'refused: it holds numpy\._?core\.multiarray\.scalar'):
        load_file(path)  # a training state with one would go on with a wrong value


# ---------------------------------------------------------------- names of other programs

RRDBNET = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': 4, 'num_feat': 16, 'num_block': 2,
           'num_grow_ch': 8}  # fmt: skip


def old_names(state: dict) -> dict:
    """As ESRGAN named them in 2018."""
    layers = {'conv_first': '0', 'conv_body': '1.sub.2', 'conv_up1': '3', 'conv_up2': '6', 'conv_hr': '8'}
    layers['conv_last'] = '10'
    named = {}
    for key, value in state.items():
        layer, _, part = key.rpartition('.')
        if layer in layers:
            named[f'model.{layers[layer]}.{part}'] = value
        else:
            _, block, rdb, conv = layer.split('.')
            named[f'model.1.sub.{block}.{rdb.upper()}.{conv}.0.{part}'] = value
    return named


def realsr_names(state: dict) -> dict:
    """As RealSR and BSRGAN name them."""
    changes = {
        'body.': 'RRDB_trunk.',
        'conv_body': 'trunk_conv',
        'conv_up': 'upconv',
        'conv_hr': 'HRconv',
        'rdb': 'RDB',
    }
    named = {}
    for key, value in state.items():
        for ours, theirs in changes.items():
            key = key.replace(ours, theirs) if not (ours == 'body.' and key.startswith('conv')) else key
        named[key] = value
    return named


@pytest.mark.parametrize('rename', [dict, old_names, realsr_names])
@pytest.mark.parametrize('scale', [1, 2, 4])
def test_esrgans_network_is_known_under_all_its_names(tmp_path, rename, scale):
    torch.manual_seed(0)
    plain = build_network({**RRDBNET, 'scale': scale}).eval()
    path = saved(tmp_path, rename(plain.state_dict()))
    net = basicsr_classpruning.load(path)
    assert net.options == {**RRDBNET, 'scale': scale}
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))
        pruned = {'type': 'ClassPruning', 'base': {**RRDBNET, 'scale': scale}, 'candidates': ['1:4', '4:4']}
        # Training starts from it in the same way.
        assert torch.equal(basicsr_classpruning.load(path, pruned).restore_with(x, '4:4'), plain(x))


def test_old_esrgan_is_exported_with_basicsrs_names(tmp_path):
    torch.manual_seed(0)
    plain = build_network(dict(RRDBNET)).eval()
    path, pruned, out = saved(tmp_path, old_names(plain.state_dict())), tmp_path / 'pruned.pth', tmp_path / 'out.pth'
    assert run_command('prune', path, '--out', pruned) == 0
    assert run_command('export', '--model', pruned, '--to', 'basicsr', '--candidate', '2:4', '--out', out) == 0
    plain.load_state_dict(torch.load(out, weights_only=True)['params'])
    with torch.no_grad():
        torch.testing.assert_close(plain(X), basicsr_classpruning.load(pruned).restore_with(X, '2:4'))


def test_a_checkpoint_pruned_when_spandrel_read_esrgans_network_is_loaded(tmp_path):
    pytest.importorskip('spandrel')
    torch.manual_seed(0)
    base, _, options = detect(build_network({**RRDBNET, 'num_grow_ch': 32}).state_dict())
    net = ClassPruning(options, ['1:4', '4:4'], weights='own', base_net=base).eval()
    path = saved(tmp_path, {'params': net.state_dict(), 'network_g': net.options})
    assert 'base.model.0.weight' in net.state_dict()
    with torch.no_grad():
        assert torch.equal(basicsr_classpruning.load(path).restore_with(X, '1:4'), net.restore_with(X, '1:4'))


def test_what_is_nearly_a_known_network_is_one_line_with_a_hint(tmp_path):
    pytest.importorskip('spandrel')
    state = build_network(dict(RRDBNET)).state_dict()
    state['conv_extra.weight'] = torch.ones(3, 3)
    with pytest.raises(UsageError, match=r'`arch` \(a network_g block\)$') as caught:
        basicsr_classpruning.load(saved(tmp_path, state))
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 400
