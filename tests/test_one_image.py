"""Networks that return several images, or need a number besides the image, and those of normalised weights."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from tiny import training_options, write_pictures, write_yaml
from torch import nn
from torch.nn.utils import parametrizations
from training import model_of, step

import basicsr_classpruning
from basicsr_classpruning.archs.one_image_arch import as_one_image
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.cli import main
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sizes import SizeRequirements, probe


class Stages(nn.Module):
    """Two stages, of which the second refines what the first gives; returns what ``order`` says."""

    order = ('first', 'second')

    def __init__(self) -> None:
        super().__init__()
        self.head, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.body, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def images(self, x):
        y = self.head(x).relu()
        second = self.second(self.body(y).relu())
        return {'first': x + self.first(y), 'second': x + second, 'half': second[..., ::2, ::2], 'features': y}

    def forward(self, x):
        images = self.images(x)
        return [images[name] for name in self.order]


@ARCH_REGISTRY.register()
class LastStage(Stages):
    """As HINet."""


@ARCH_REGISTRY.register()
class FirstStage(Stages):
    """As MPRNet, and as networks that return features too."""

    order = ('second', 'first', 'features')


@ARCH_REGISTRY.register()
class CoarseToFine(Stages):
    """As MIMO-UNet, with the restored image in the middle."""

    order = ('half', 'second', 'half')


@ARCH_REGISTRY.register()
class WithList(Stages):
    """As PReNet: an image, and a list of them."""

    def forward(self, x):
        images = self.images(x)
        return images['second'], [images['first'], images['second']]


@ARCH_REGISTRY.register()
class Named(Stages):
    def forward(self, x):
        return self.images(x)


@ARCH_REGISTRY.register()
class Scaled(nn.Module):
    """As CARN: its forward takes the scale."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.tail = nn.Conv2d(16, 3 * scale**2, 3, padding=1)

    def forward(self, x, scale, multi=False):
        return nn.functional.pixel_shuffle(self.tail(self.body(self.head(x)).relu()), scale)


@ARCH_REGISTRY.register()
class Normalised(nn.Module):
    """Weight and spectral normalisation, by hooks and by parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.body = parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1))
        self.up = nn.utils.spectral_norm(nn.ConvTranspose2d(16, 16, 3, padding=1))
        self.tail = parametrizations.spectral_norm(nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x):
        return x + self.tail(self.up(self.body(self.head(x)).relu()))


class Nothing(nn.Module):
    def forward(self, x):
        return ['text', None]


CHOSEN = {
    'LastStage': (-1, 'second'),
    'FirstStage': (0, 'second'),
    'CoarseToFine': (1, 'second'),
    'WithList': (0, 'second'),
    'Named': ('second', 'second'),
}
X = torch.rand(1, 3, 10, 14, generator=torch.Generator().manual_seed(0))


def plain(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ARCH_REGISTRY.get(name)().eval()


def whole_way(folder, net: nn.Module, base: dict, wanted: torch.Tensor, *words: str) -> str:
    """Prunes, restores, trains and exports; the pruned file."""
    write_checkpoint(folder / 'dense.pth', {'params': net.state_dict()}, None)
    arch, pruned = write_yaml(folder / 'arch.yml', {'network_g': base}), str(folder / 'pruned.pth')
    pictures = str(write_pictures(folder / 'pictures', 2, 104, 112))
    call = ['prune', str(folder / 'dense.pth'), '--arch', arch, '--out', pruned, '--candidates', '2:4', '4:4', *words]
    assert main(call) == 0
    found = basicsr_classpruning.load(pruned)
    torch.testing.assert_close(found.restore_with(X, '4:4'), wanted)
    assert main(['restore', pictures, '--model', pruned, '--output', str(folder / 'restored')]) == 0
    assert main(['analyze', '--model', pruned, '--size', '3x16x16']) == 0
    dense = ['--model', str(folder / 'dense.pth'), '--arch', arch]
    assert main(['restore', pictures, *dense, '--output', str(folder / 'dense')]) == 0

    out = str(folder / 'out.pth')
    assert main(['export', '--model', pruned, '--to', 'basicsr', '--candidate', '4:4', '--out', out]) == 0
    with torch.no_grad():
        torch.testing.assert_close(basicsr_classpruning.load(out)(X), wanted)

    onnx = str(folder / 'out.onnx')
    assert main(['export', '--model', pruned, '--to', 'onnx', '--candidate', '4:4', '--out', onnx]) == 0
    session = pytest.importorskip('onnxruntime').InferenceSession(onnx)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-4)

    options = training_options(folder / 'pictures')
    scale = wanted.shape[-1] // X.shape[-1]
    options['scale'] = scale
    degradation = {'type': 'bicubic'} if scale > 1 else {'type': 'noise', 'sigma': [0, 50]}
    options['datasets']['train'].update(degradation=degradation, gt_size=8 * scale)
    compared = folder / 'compared.json'
    degrade = f'bicubic{scale}' if scale > 1 else 'noise25'
    call = ['benchmark', '--models', pruned, '--gt', pictures, '--degrade', degrade, '--repeats', '1']
    assert main([*call, '--candidates', '2:4', '4:4', '--json', str(compared)]) == 0
    assert {row['candidate'] for row in json.loads(compared.read_text())['rows']} == {'2:4', '4:4'}
    options['network_g']['base'] = base
    options['path'] = {'pretrain_network_g': str(folder / 'dense.pth')}
    model = model_of(folder, options)
    torch.testing.assert_close(model.net_g.eval().restore_with(X, '4:4'), wanted)
    model.net_g.train()
    data = {'lq': torch.rand(3, 3, 8, 8), 'gt': torch.rand(3, 3, 8 * scale, 8 * scale)}
    assert 'base' in step(model, 1, data)
    return out


@pytest.mark.parametrize('name', CHOSEN)
@torch.no_grad()
def test_the_restored_image_is_the_last_one_made(name):
    net = plain(name)
    found, options, inputs = as_one_image(net, {'type': name})
    index, image = CHOSEN[name]
    assert options == {'type': 'OneImage', 'output': index, 'arguments': {}, 'net': {'type': name}}
    assert torch.equal(found(X), net.images(X)[image])
    assert inputs.use.first == 'called.head'


@pytest.mark.parametrize('name', ['FirstStage', 'Named'])
@pytest.mark.usefixtures('little_work')
def test_several_images_the_whole_way(tmp_path, name, caplog, monkeypatch):
    for attribute, value in (('propagate', True), ('disabled', False)):  # whatever other libraries did to it
        monkeypatch.setattr(logging.getLogger('basicsr_classpruning'), attribute, value)
    caplog.set_level(logging.INFO, logger='basicsr_classpruning')
    net = plain(name)
    with torch.no_grad():
        wanted = net.images(X)['second']
    out = whole_way(tmp_path, net, {'type': name}, wanted)
    assert f'{name} returns {len(net(X))} images: {CHOSEN[name][0]!r} is taken as the restored one' in caplog.text
    net.load_state_dict(torch.load(out, weights_only=True)['params'])  # the names of the network itself
    calibrated = str(tmp_path / 'calibrated.pth')
    call = ['prune', str(tmp_path / 'dense.pth'), '--arch', str(tmp_path / 'arch.yml'), '--out', calibrated]
    assert main([*call, '--calibration', str(tmp_path / 'pictures'), '--degrade', 'noise25']) == 0
    torch.testing.assert_close(basicsr_classpruning.load(calibrated).restore_with(X, '4:4'), wanted)


def test_another_image_can_be_named(tmp_path, capsys):
    net = plain('LastStage')
    write_checkpoint(tmp_path / 'dense.pth', {'params': net.state_dict()}, None)
    arch, out = write_yaml(tmp_path / 'arch.yml', {'network_g': {'type': 'LastStage'}}), tmp_path / 'out.pth'
    call = ['prune', str(tmp_path / 'dense.pth'), '--arch', arch, '--out', str(out)]
    assert main([*call, '--output-image', '0', '--value-range', '255']) == 0
    with torch.no_grad():
        wanted = net.images(255 * X)['first'] / 255
    torch.testing.assert_close(basicsr_classpruning.load(out).restore_with(X, '4:4'), wanted)
    assert main([*call, '--output-image', '7']) == 1
    assert 'index' in capsys.readouterr().err
    options = {'type': 'ClassPruning', 'base': {'type': 'LastStage'}, 'candidates': ['2:4', '4:4'], 'output': 0}
    built = ARCH_REGISTRY.get('ClassPruning')(**{key: options[key] for key in ('base', 'candidates', 'output')})
    assert built.options['base']['output'] == 0


def test_what_holds_no_image_is_refused():
    with pytest.raises(UserError, match='Nothing returns a list, and in it no image'):
        probe(Nothing(), [3])


@pytest.mark.usefixtures('little_work')
def test_a_number_that_the_options_have_is_given_to_forward(tmp_path):
    net = plain('Scaled')
    with torch.no_grad():
        wanted = net(X, 2)
    whole_way(tmp_path, net, {'type': 'Scaled', 'scale': 2}, wanted)


def test_what_the_options_do_not_have_is_named():
    with pytest.raises(UserError, match=r'Scaled needs more than an image: scale; .*OneImage, arguments: \{scale: …\}'):
        as_one_image(plain('Scaled'), {'type': 'Scaled'})


@pytest.mark.usefixtures('little_work')
def test_normalised_weights_are_folded(tmp_path):
    net = plain('Normalised')
    with torch.no_grad():
        wanted = net(X)
    whole_way(tmp_path, net, {'type': 'Normalised'}, wanted)
    pruned = basicsr_classpruning.load(tmp_path / 'pruned.pth')
    assert [choice.name for choice in pruned.choices if choice.patterns] == ['body', 'up', 'tail']


def test_normalised_weights_that_cannot_be_copied_are_one_line():
    net = nn.utils.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    net(X)
    with pytest.raises(UserError, match='Conv2d holds values that it computed'):
        probe(net, [3])


class Square(nn.Module):
    """As Uformer: it finds out the height from the number of pixels."""

    def __init__(self, multiple: int, only: int = 0) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.multiple, self.only = multiple, only

    def forward(self, x):
        side = int((x.shape[2] * x.shape[3]) ** 0.5)
        if side % self.multiple or self.only not in (0, side):
            raise ValueError('does not fit')
        return self.body(x.flatten(2).view(len(x), 3, side, side))


@pytest.mark.parametrize('multiple', [1, 8, 128])
def test_squares_are_found(multiple):
    net = Square(multiple)
    assert probe(net, [3]).sizes == SizeRequirements(1, multiple, max(multiple, 1), square=True)
    routed = basicsr_classpruning.archs.forms.as_routed(net)
    assert routed.dense.restore(torch.rand(1, 3, 20, 30)).shape == (1, 3, 20, 30)
    assert routed.info.macs_dense > 0


def test_one_size_only_is_refused_by_what_it_is():
    with pytest.raises(UserError, match=r'Square takes images of 40×40 pixels only'):
        probe(Square(8, only=40), [3])


@ARCH_REGISTRY.register()
class WideSquare(Square):
    """Beside it a layer of many channels, which are tried at every size."""

    def __init__(self) -> None:
        super().__init__(128)
        self.wide = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in range(400, 512, 8))


def test_the_images_that_are_tried_are_not_held_against_a_file(tmp_path):
    write_checkpoint(tmp_path / 'dense.pth', {'params': plain('WideSquare').state_dict()}, None)
    net = basicsr_classpruning.load(tmp_path / 'dense.pth', arch={'type': 'WideSquare'})
    assert net(torch.rand(1, 3, 20, 30)).shape == (1, 3, 20, 30)
