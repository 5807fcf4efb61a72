"""Networks that work in 0 … 255: pruned, trained, restored with and exported as if they worked in [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny import NETWORKS, classpruning, dense, training_options, write_pictures, write_yaml
from torch import nn
from training import batch, model_of, step

import basicsr_classpruning
from basicsr_classpruning.cli import main
from basicsr_classpruning.config import load_network_options
from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.safe_files import save_file

X = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))


@ARCH_REGISTRY.register()
class Wide(nn.Module):
    """Does something else to dark values than to bright ones, so that the range matters."""

    def __init__(self, num_in_ch: int = 3, num_feat: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.tail = nn.Conv2d(num_feat, num_in_ch, 3, padding=1)

    def forward(self, x):
        return x - self.tail(self.body((self.head(x - 114)).relu()).relu())


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    plain = Wide().eval()
    save_file({'params': plain.state_dict()}, tmp_path / 'dense.pth')
    write_yaml(tmp_path / 'arch.yml', {'network_g': {'type': 'Wide'}})
    write_pictures(tmp_path / 'pictures', height=200, width=200)
    return plain, tmp_path


def command(*words: object) -> int:
    return main([str(word) for word in words])


def within(plain: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return plain(x * 255) / 255


def test_prune_restore_export(files, capsys):
    plain, folder = files
    pruned, out, graph = folder / 'pruned.pth', folder / 'out.pth', folder / 'out.onnx'
    assert command('prune', folder / 'dense.pth', '--arch', folder / 'arch.yml', '--value-range', 255, '--out', pruned,
                   '--weights', 'own') == 0  # fmt: skip
    assert 'Wide' in capsys.readouterr().out
    net = basicsr_classpruning.load(pruned)
    with torch.no_grad():
        assert torch.equal(net.restore_with(X, '4:4'), within(plain, X))
        sparse = net.restore_with(X, '2:4')
    assert not torch.equal(sparse, within(plain, X))

    assert command('export', '--model', pruned, '--to', 'basicsr', '--candidate', '2:4', '--out', out) == 0
    plain.load_state_dict(torch.load(out, weights_only=True)['params'])  # the names of the network itself
    assert torch.equal(within(plain, X), sparse)
    with torch.no_grad():
        assert torch.equal(basicsr_classpruning.load(out)(X), sparse)

    onnxruntime = pytest.importorskip('onnxruntime')
    assert command('export', '--model', pruned, '--to', 'onnx', '--candidate', '2:4', '--out', graph) == 0
    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    np.testing.assert_allclose(found, sparse.numpy(), atol=1e-4)

    assert command('restore', folder / 'pictures', '--model', pruned, '--output', folder / 'restored') == 0
    assert command('prune', pruned, '--value-range', 255, '--out', folder / 'twice.pth') == 2
    assert 'the file says already that white is 255' in capsys.readouterr().err


def test_calibration_sees_the_range(files):
    plain, folder = files
    assert command('prune', folder / 'dense.pth', '--arch', folder / 'arch.yml', '--value-range', 255, '--out',
                   folder / 'pruned.pth', '--candidates', '2:4', '--calibration', folder / 'pictures', '--degrade',
                   'noise25', '--device', 'cpu') == 0  # fmt: skip
    assert command('prune', folder / 'dense.pth', '--arch', folder / 'arch.yml', '--value-range', 255, '--out',
                   folder / 'magnitude.pth', '--candidates', '2:4') == 0  # fmt: skip
    losses = {}
    for name in ('pruned', 'magnitude'):
        net = basicsr_classpruning.load(folder / f'{name}.pth')
        with torch.no_grad():
            losses[name] = float((net.restore_with(X, '2:4') - within(plain, X)).square().mean())
    assert losses['pruned'] < 0.7 * losses['magnitude']


@pytest.mark.parametrize('name', ['DnCNN', 'ECBSR', 'NAFNet'])
def test_training_starts_from_the_plain_checkpoint(tmp_path, pictures, name):
    plain = dense(name)
    save_file({'params': plain.state_dict()}, tmp_path / 'dense.pth')
    options = training_options(pictures, name)
    options['network_g']['value_range'] = 255
    options['path'] = {'pretrain_network_g': str(tmp_path / 'dense.pth')}
    model = model_of(tmp_path, options)
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model.net_g.eval().restore_with(x, '4:4'), within(plain, x), rtol=1e-4, atol=1e-5)
    model.net_g.train()
    assert step(model, 1, batch(name)) == {'base'}
    save_file({'params': model.net_g.state_dict(), 'network_g': model.network_options()}, tmp_path / 'net.pth')
    found = basicsr_classpruning.load(tmp_path / 'net.pth').restore_with(x, '2:4')
    torch.testing.assert_close(found, model.net_g.eval().restore_with(x, '2:4'), rtol=1e-4, atol=1e-4)


def test_a_range_of_one_changes_nothing():
    plain = classpruning('EDSR')
    assert classpruning('EDSR', value_range=1).state_dict().keys() == plain.state_dict().keys()


def test_a_dense_network_is_named_with_its_range(files):
    plain, folder = files
    write_yaml(folder / 'ranged.yml', {'type': 'ValueRange', 'value_range': 255, 'net': {'type': 'Wide'}})
    net = basicsr_classpruning.load(folder / 'dense.pth', load_network_options(str(folder / 'ranged.yml')))
    assert net.num_in_ch == 3
    with torch.no_grad():
        assert torch.equal(net(X), within(plain, X))


def test_other_ranges_are_refused(tmp_path):
    options = {'type': 'ClassPruning', 'base': NETWORKS['EDSR'], 'candidates': ['2:4'], 'value_range': 100}
    path = write_yaml(tmp_path / 'net.yml', {'network_g': options})
    with pytest.raises(UsageError, match=r'network_g\.value_range: 100 is not allowed; 1 or 255'):
        load_network_options(path)


# --------------------------------------------------------- networks that only spandrel knows


def test_a_network_of_spandrels_is_trained(tmp_path, pictures, capsys):
    pytest.importorskip('spandrel')
    options = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_conv': 3, 'upscale': 2}
    torch.manual_seed(0)
    plain = build_network(dict(options)).eval()
    path = tmp_path / 'dense.pth'
    save_file({'params': plain.state_dict()}, path)
    assert command('prune', path, '--value-range', 255, '--out', tmp_path / 'pruned.pth') == 0
    assert 'network_g.base: {type: Spandrel, checkpoint: FILE} trains it' in capsys.readouterr().out
    ranged = basicsr_classpruning.load(tmp_path / 'pruned.pth')
    with torch.no_grad():
        torch.testing.assert_close(ranged.restore_with(X, '4:4'), within(plain, X))

    training = training_options(pictures, 'EDSR')
    training['network_g'].update(base={'type': 'Spandrel', 'checkpoint': str(path)}, weights='own')
    for start in (None, str(path)):
        training['path'] = {'pretrain_network_g': start}
        model = model_of(tmp_path, training)
        with torch.no_grad():
            torch.testing.assert_close(model.net_g.eval().restore_with(X, '4:4'), plain(X))
    model.net_g.train()
    assert step(model, 1) == {'base'}
    save_file({'params': model.net_g.state_dict(), 'network_g': model.network_options()}, tmp_path / 'net.pth')
    path.unlink()  # a checkpoint is enough
    again = basicsr_classpruning.load(tmp_path / 'net.pth')
    with torch.no_grad():
        torch.testing.assert_close(again.restore_with(X, '2:4'), model.net_g.eval().restore_with(X, '2:4'))


def test_a_file_does_not_make_another_file_be_read(tmp_path):
    pytest.importorskip('spandrel')
    save_file({'params': dense('NAFNet').state_dict()}, tmp_path / 'other.pth')
    base = {'type': 'Spandrel', 'checkpoint': str(tmp_path / 'other.pth')}
    for options in ({'type': 'ClassPruning', 'base': base, 'candidates': ['2:4']}, base):
        save_file({'params': {'x': torch.ones(2, 2)}, 'network_g': options}, tmp_path / 'net.pth')
        with pytest.raises(UsageError, match='neither in the file nor detected'):
            basicsr_classpruning.load(tmp_path / 'net.pth')
