"""Exported networks: what other programs load and compute, how big the files are, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.ecbsr_arch import ECBSR
from basicsr.utils.registry import ARCH_REGISTRY
from calibrated import CANDIDATES, NETWORKS, build, images

import basicsr_classpruning
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.checkpoint import read_checkpoint, write_checkpoint
from basicsr_classpruning.cli import export as command
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.export import onnx as onnx_export
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.sparsity import Pattern


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Writes a small ClassPruning checkpoint of the named network, once; returns the network and its file."""
    made = {}

    def get(name: str) -> tuple[ClassPruning, Path]:
        if name not in made:
            net = build(name)
            path = tmp_path_factory.mktemp(name) / 'model.pth'
            write_checkpoint(path, {'params': net.state_dict()}, net.options)
            made[name] = net, path
        return made[name]

    return get


def export(*arguments: object) -> int:
    """Runs ``classpruning export``; raises what the command prints as one line."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(['export', *map(str, arguments)])
    return args.func(args)


# ------------------------------------------------------------------ BasicSR and spandrel


@pytest.mark.parametrize('candidate', CANDIDATES)
def test_basicsrs_own_class_computes_the_candidate_from_the_file(models, tmp_path, candidate):
    net, model = models('EDSR')
    out = tmp_path / 'static.pth'
    assert export('--model', model, '--to', 'basicsr', '--candidate', candidate, '--out', out) == 0
    params = torch.load(out, weights_only=True)['params']
    plain = ARCH_REGISTRY.get('EDSR')(**NETWORKS['EDSR']).eval()
    plain.load_state_dict(params, strict=True)
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net.restore_with(x, candidate), rtol=0, atol=1e-6)
    density = float(torch.count_nonzero(params['body.0.conv1.weight'])) / params['body.0.conv1.weight'].numel()
    assert density == Pattern.parse(candidate).density


def test_without_a_candidate_the_densest_is_taken_and_named(models, tmp_path, capsys):
    net, model = models('EDSR')
    export('--model', model, '--to', 'basicsr', '--out', tmp_path / 'static.pth')
    assert '4:4 (the densest of 1:4, 2:4, 4:4' in capsys.readouterr().out
    loaded = basicsr_classpruning.load(tmp_path / 'static.pth')
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net.restore_with(x, '4:4'), rtol=0, atol=1e-6)


PLAIN_BASICSR = """
    import json, sys, types, torch
    # BasicSR 1.4.2 imports a module that torchvision has dropped, and a torchvision built for another torch lacks
    # operators; what follows is what a user without a matching pair would have to add.
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        try:
            import torchvision
        except RuntimeError:
            library.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
            for module in [module for module in sys.modules if module.split('.')[0] == 'torchvision']:
                del sys.modules[module]
    import torchvision
    stub = types.ModuleType('torchvision.transforms.functional_tensor')
    stub.rgb_to_grayscale = None
    sys.modules.setdefault(stub.__name__, stub)

    from basicsr.models import build_model
    checkpoint, picture, output = sys.argv[1:]
    model = build_model({
        'name': 'plain', 'model_type': 'SRModel', 'num_gpu': 0, 'dist': False, 'is_train': False, 'scale': 2,
        'network_g': {'type': 'EDSR', **json.load(sys.stdin)},
        'path': {'pretrain_network_g': checkpoint, 'strict_load_g': True, 'param_key_g': 'params'},
    })
    model.feed_data({'lq': torch.load(picture, weights_only=True)})
    model.test()
    torch.save(model.output, output)
    assert not [name for name in sys.modules if name.startswith('basicsr_classpruning')]
"""


def test_plain_basicsr_restores_with_the_file_without_this_package(models, tmp_path):
    """In a process of its own. BasicSR 1.4.2 cannot be imported next to today's torchvision, so the script makes the
    same two mends as this package does (none of them touches networks or checkpoints), and then uses BasicSR's own
    model class to load the file and to restore."""
    net, model = models('EDSR')
    out = tmp_path / 'static.pth'
    export('--model', model, '--to', 'basicsr', '--candidate', '2:4', '--out', out)
    x = images(3)
    torch.save(x, tmp_path / 'x.pt')
    script = [sys.executable, '-c', textwrap.dedent(PLAIN_BASICSR), out, tmp_path / 'x.pt', tmp_path / 'y.pt']
    done = subprocess.run(
        script, input=json.dumps(NETWORKS['EDSR']), text=True, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = net.restore_with(x, '2:4')
    torch.testing.assert_close(torch.load(tmp_path / 'y.pt', weights_only=True), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('name', 'channels'), [('DnCNN', 1), ('NAFNet', 3), ('SRVGGNetCompact', 3)])
@pytest.mark.parametrize('target', ['basicsr', 'safetensors'])
def test_spandrel_loads_the_file_and_computes_the_same(models, tmp_path, name, channels, target):
    spandrel = pytest.importorskip('spandrel')
    net, model = models(name)
    out = tmp_path / ('static.pth' if target == 'basicsr' else 'static.safetensors')
    export('--model', model, '--to', target, '--candidate', '1:4', '--out', out)
    descriptor = spandrel.ModelLoader().load_from_file(out)
    x = images(channels)
    with torch.no_grad():
        torch.testing.assert_close(descriptor.model.eval()(x), net.restore_with(x, '1:4'), rtol=0, atol=1e-5)


def test_a_network_that_spandrel_detected_is_exported_under_its_own_keys(tmp_path):
    pytest.importorskip('spandrel')
    torch.manual_seed(0)
    dense = ARCH_REGISTRY.get('SRVGGNetCompact_basicsr')(**NETWORKS['SRVGGNetCompact']).state_dict()
    save_file({'params': dense}, tmp_path / 'dense.pth')
    detected = basicsr_classpruning.load(tmp_path / 'dense.pth')
    assert detected.options['type'] == 'Spandrel'
    net = ClassPruning(detected.options, CANDIDATES, weights='own', base_net=detected.net).eval()
    write_checkpoint(tmp_path / 'model.pth', {'params': net.state_dict()}, net.options)
    out = tmp_path / 'static.pth'
    export('--model', tmp_path / 'model.pth', '--to', 'basicsr', '--candidate', '2:4', '--out', out)
    assert set(torch.load(out, weights_only=True)['params']) == set(dense)
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(basicsr_classpruning.load(out)(x), net.restore_with(x, '2:4'))


@pytest.mark.parametrize('with_idt', [False, True])
def test_ecbsr_is_unfolded_into_basicsrs_own_branches(tmp_path, with_idt):
    net = build('ECBSR', with_idt=with_idt, num_channel=8)
    write_checkpoint(tmp_path / 'model.pth', {'params': net.state_dict()}, net.options)
    out = tmp_path / 'static.pth'
    export('--model', tmp_path / 'model.pth', '--to', 'basicsr', '--candidate', '1:4', '--out', out)
    plain = ECBSR(**{**NETWORKS['ECBSR'], 'with_idt': with_idt})
    plain.load_state_dict(torch.load(out, weights_only=True)['params'], strict=True)
    x = images(3)
    with torch.no_grad():
        wanted = net.restore_with(x, '1:4')
        torch.testing.assert_close(plain.eval()(x), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(plain.train()(x), wanted, rtol=0, atol=1e-5)
    frozen = net.subnetwork('1:4').net.backbone[1].conv.weight
    merged = plain.backbone[1].rep_params()[0]
    assert torch.equal(merged == 0, frozen == 0)


# --------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize(('candidate', 'share'), [('1:4', 0.30), ('2:4', 0.57)])
def test_compact_files_are_small_and_exact(tmp_path, candidate, share):
    net = build('MSRResNet', num_feat=32)
    model = tmp_path / 'model.pth'
    write_checkpoint(model, {'params': net.state_dict()}, net.options)
    common = ('--model', model, '--to', 'safetensors', '--candidate', candidate, '--out')
    export(*common, tmp_path / 'dense.safetensors')
    export(*common, tmp_path / 'compact.safetensors', '--compact')
    sizes = [(tmp_path / f'{name}.safetensors').stat().st_size for name in ('compact', 'dense')]
    assert sizes[0] <= share * sizes[1]
    wanted = net.subnetwork(candidate).net.state_dict()
    for name in ('compact', 'dense'):
        checkpoint = read_checkpoint(tmp_path / f'{name}.safetensors')
        assert checkpoint.network_g == net.options['base']
        assert checkpoint.params().keys() == wanted.keys()
        assert all(torch.equal(checkpoint.params()[key], value) for key, value in wanted.items())
    x = images(3)
    with torch.no_grad():
        restored = basicsr_classpruning.load(tmp_path / 'compact.safetensors')(x)
    torch.testing.assert_close(restored, net.restore_with(x, candidate), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------- ONNX


def run_onnx(path: Path, x: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(['output'], {'input': x.numpy()})[0])


@pytest.mark.parametrize('name', NETWORKS)
def test_an_onnx_file_computes_the_candidate_at_any_size(models, tmp_path, name, capfd):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    net, model = models(name)
    out = tmp_path / 'model.onnx'
    export('--model', model, '--to', 'onnx', '--candidate', '2:4', '--out', out)
    printed = capfd.readouterr()
    assert printed.err == ''
    assert len(printed.out.splitlines()) == 2
    batch = 1 if 'one image at a time' in printed.out else 4
    assert (batch == 1) == (name == 'SwinIR')
    for height, width in ((5, 3), (9, 14)):
        height, width = (net.sizes.padded(side) for side in (height, width))
        x = images(net.num_in_ch, batch, height, width)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(out, x), net.restore_with(x, '2:4'), rtol=0, atol=1e-4)


def test_an_onnx_folder_holds_all_that_routing_needs(models, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    net, model = models('DnCNN')
    with torch.no_grad():
        net.classifier.head.weight.mul_(40)
        net.log_price.fill_(0.3)
    write_checkpoint(model, {'params': net.state_dict()}, net.options)
    folder = tmp_path / 'bundle'
    export('--model', model, '--to', 'onnx', '--out', folder)
    assert 'classifier.onnx' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['bundle']
    manifest = json.loads((folder / 'manifest.json').read_text())
    entries = [manifest['classifier'], *manifest['candidates']]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*(e['file'] for e in entries), 'manifest.json'])
    for entry in entries:
        assert hashlib.sha256((folder / entry['file']).read_bytes()).hexdigest() == entry['sha256']
    assert manifest['scale'] == 1
    assert manifest['input'] == {'name': 'input', 'channels': 1, 'range': [0, 1]}
    assert [entry['candidate'] for entry in manifest['candidates']] == CANDIDATES

    noise = torch.linspace(0, 1, 8)[:, None, None, None]
    x = (0.5 + noise * (images(1, 8) - 0.5)).contiguous()
    scores = run_onnx(folder / manifest['classifier']['file'], x).numpy()
    costs = np.array([entry['cost'] for entry in manifest['candidates']])
    classes = (scores - manifest['price'] * costs).argmax(axis=1)
    assert classes.tolist() == net.classify(x).tolist()
    outputs = [run_onnx(folder / manifest['candidates'][k]['file'], x[i : i + 1]) for i, k in enumerate(classes)]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(outputs), net(x), rtol=0, atol=1e-4)


def test_a_dense_network_goes_into_one_onnx_file(tmp_path):
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    plain = ARCH_REGISTRY.get('EDSR')(**NETWORKS['EDSR']).eval()
    write_checkpoint(tmp_path / 'dense.pth', {'params': plain.state_dict()}, {'type': 'EDSR', **NETWORKS['EDSR']})
    export('--model', tmp_path / 'dense.pth', '--to', 'onnx', '--out', tmp_path / 'dense.onnx')
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(tmp_path / 'dense.onnx', x), plain(x), rtol=0, atol=1e-4)


class HoldsItsSize(torch.nn.Module):
    """Multiplies by a number that a trace keeps although it depends on the input's size."""

    def forward(self, x):
        return x * float(x.shape[2])


class Sorts(torch.nn.Module):
    """Does what no ONNX operator does."""

    def forward(self, x):
        return torch.fft.fft2(x).real


@pytest.mark.parametrize(
    ('net', 'message'), [(HoldsItsSize(), 'HoldsItsSize cannot .* any height'), (Sorts(), 'Sorts cannot')]
)
def test_a_graph_that_does_something_else_is_refused_in_one_line(net, message):
    pytest.importorskip('onnxruntime')
    from basicsr_classpruning.sizes import SizeRequirements

    with pytest.raises(UserError, match=message) as caught:
        onnx_export.convert(net, 3, SizeRequirements(1, 1))
    assert '\n' not in str(caught.value)


def test_without_the_optional_packages_the_command_says_how_to_get_them(models, tmp_path, monkeypatch):
    _, model = models('DnCNN')
    monkeypatch.setattr(onnx_export, 'find_spec', lambda name: None)
    for arguments in (('--candidate', '2:4', '--out', tmp_path / 'x.onnx'), ('--out', tmp_path / 'x')):
        with pytest.raises(UserError, match=r'onnx and onnxruntime: pip install basicsr-classpruning\[engines\]'):
            export('--model', model, '--to', 'onnx', *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_finished_does_not_appear(models, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    _, model = models('DnCNN')
    monkeypatch.setattr(onnx_export, 'TOLERANCE', -1)
    with pytest.raises(UserError, match='cannot be exported'):
        export('--model', model, '--to', 'onnx', '--out', tmp_path / 'bundle')
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--to', 'basicsr', '--compact', '--out', 'x.pth'), '--compact: only with --to safetensors'),
        (('--to', 'safetensors', '--out', 'x.pth'), '--out x.pth: end it in .safetensors'),
        (('--to', 'basicsr', '--out', 'x.safetensors'), 'no ending for --to basicsr'),
        (('--to', 'basicsr', '--out', 'no/such/x.pth'), 'its folder does not exist'),
        (('--to', 'basicsr', '--out', '.'), 'a folder; name a file'),
        (('--to', 'basicsr', '--candidate', '3:4', '--out', 'x.pth'), 'not one of this network: 1:4, 2:4, 4:4'),
        (('--to', 'onnx', '--out', 'x.onnx'), 'for one file add --candidate'),
        (('--to', 'basicsr', '--out', '{model}'), 'the result would replace it'),
        (('--to', 'onnx', '--out', 'full'), 'exists already'),
    ],
)
def test_wrong_calls_get_one_line_and_write_nothing(models, tmp_path, monkeypatch, arguments, message):
    _, model = models('DnCNN')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('kept')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        export('--model', model, *(str(part).format(model=model) for part in arguments))
    assert '\n' not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['full', 'mine.txt']


def test_a_dense_network_has_no_candidates(tmp_path):
    write_checkpoint(
        tmp_path / 'dense.pth',
        {'params': ARCH_REGISTRY.get('DnCNN')(**NETWORKS['DnCNN']).state_dict()},
        {'type': 'DnCNN', **NETWORKS['DnCNN']},
    )
    with pytest.raises(UsageError, match='candidate 2:4: the network is dense'):
        export('--model', tmp_path / 'dense.pth', '--to', 'basicsr', '--candidate', '2:4', '--out', tmp_path / 'x.pth')
