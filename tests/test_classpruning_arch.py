"""The ClassPruning wrapper around each of the ten networks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny import NETWORKS, classpruning, dense, in_threads, network_g, scale_of
from torch import nn

from basicsr_classpruning import load
from basicsr_classpruning.archs.ecbsr_adapter import fold_ecbsr
from basicsr_classpruning.checkpoint import write_checkpoint
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.routing.errors import relative_errors
from basicsr_classpruning.sparsity import sparse_layers
from basicsr_classpruning.sparsity.masks import satisfies

ALL = pytest.mark.parametrize('name', NETWORKS)


@pytest.fixture(scope='module')
def edsr() -> nn.Module:
    """A network that no test changes."""
    return classpruning('EDSR')


class ByBrightness(nn.Module):
    """Scores that put an image of mean brightness k / (K − 1) into class k, whatever its MACs."""

    def __init__(self, num_in_ch: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer('means', torch.linspace(0, 1, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -1 - 1000 * (x.mean((1, 2, 3))[:, None] - self.means).abs()


def by_brightness(name: str = 'EDSR') -> nn.Module:
    net = classpruning(name)
    net.classifier = ByBrightness(3, 3)
    return net.eval()


def images_of(classes: list[int], side: int = 12) -> torch.Tensor:
    """Images ``(B, 3, side, side)`` that ``ByBrightness`` puts into these classes."""
    generator = torch.Generator().manual_seed(0)
    texture = 0.2 * (torch.rand(len(classes), 3, side, side, generator=generator) - 0.5)
    return torch.tensor(classes)[:, None, None, None] / 2 + texture - texture.mean((1, 2, 3), keepdim=True)


# ------------------------------------------------------------------ all networks


@ALL
def test_a_dense_checkpoint_loads_and_the_dense_candidate_is_the_plain_network(name):
    plain = dense(name)
    net = build_network(network_g(name))
    net.load_params(plain.state_dict())
    net.eval()
    x = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        original = plain(x)
        if name == 'ECBSR':  # its branches are merged in another order of summation
            torch.testing.assert_close(net.restore_with(x, '4:4'), original, atol=1e-5, rtol=1e-4)
            original = fold_ecbsr(plain)(x)
    assert torch.equal(net.restore_with(x, '4:4'), original)
    assert torch.equal(net.dense.net(x), original)
    assert not torch.equal(net.restore_with(x, '1:4'), original)


@ALL
def test_frozen_candidates_obey_their_patterns(name):
    net = classpruning(name)
    for candidate in net.candidates:
        layers = dict(net.subnetwork(candidate).net.named_modules())
        for layer, pattern in net.patterns(candidate).items():
            assert type(layers[layer]) in (nn.Conv2d, nn.Linear)
            assert satisfies(layers[layer].weight, pattern)
    assert net.patterns('4:4') == {}
    assert net.patterns('1:4')


@ALL
def test_images_of_any_size(name):
    net = classpruning(name)
    assert net.scale == scale_of(name)
    for height, width in ((1, 1), (2, 7), (13, 5), (17, 33)):
        output = net(torch.rand(2, 3, height, width))
        assert output.shape == (2, 3, height * net.scale, width * net.scale)
        assert torch.isfinite(output).all()


@ALL
def test_saving_and_loading(name, tmp_path):
    net = classpruning(name)
    torch.save({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    saved = torch.load(tmp_path / 'net.pth', weights_only=True)
    again = build_network(saved['network_g'])
    again.load_params(saved['params'])
    x = torch.rand(3, 3, 12, 12)
    for candidate in net.candidates:
        assert torch.equal(again.eval().restore_with(x, candidate), net.restore_with(x, candidate))
    assert torch.equal(again.predicted_errors(x), net.predicted_errors(x))


# ------------------------------------------------------------------------ routing


@pytest.mark.parametrize('name', ['EDSR', 'SwinIR', 'NAFNet'])
def test_each_image_is_restored_by_its_own_candidate_in_the_order_given(name):
    net = by_brightness(name)
    classes = [2, 0, 1, 1, 0, 2, 0]
    x = images_of(classes)
    assert net.classify(x).tolist() == classes
    output = net(x)
    for image, restored, candidate in zip(x, output, classes):
        torch.testing.assert_close(restored[None], net.restore_with(image[None], candidate))


@pytest.mark.parametrize('classes', [[0], [1, 1, 1], [2, 2], [2, 1, 0], [0, 2]])
def test_batches_with_one_class_and_with_all(classes):
    net = by_brightness()
    x = images_of(classes)
    wanted = torch.cat([net.restore_with(image[None], k) for image, k in zip(x, classes)])
    torch.testing.assert_close(net(x), wanted)


def test_classes_can_be_given(edsr):
    x = torch.rand(3, 3, 8, 8)
    output = edsr(x, torch.tensor([2, 0, 2]))
    torch.testing.assert_close(output[1:2], edsr.restore_with(x[1:2], '1:4'))
    torch.testing.assert_close(output[[0, 2]], edsr.restore_with(x[[0, 2]], '4:4'))


def test_a_budget_decides_over_the_batch():
    net = classpruning('EDSR')
    x = torch.rand(40, 3, 8, 8) * torch.linspace(0.01, 1, 40)[:, None, None, None]
    costs = net.costs()
    for budget in (0.4, 0.6, 0.8):
        net.budget = budget
        assert budget - 0.02 <= float(costs[net.classify(x)].mean()) <= budget
    net.budget = None
    assert torch.equal(net.classify(x), net.probabilities(relative_errors(net.predicted_errors(x))).argmax(1))


def test_the_price_moves_images_to_sparser_candidates():
    net = classpruning('EDSR')
    x = torch.rand(16, 3, 8, 8)
    costs = net.costs()
    spent = []
    for log_price in (-12.0, 0.0, 12.0):
        net.log_price.data.fill_(log_price)
        spent.append(float(costs[net.classify(x)].mean()))
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]
    assert spent[-1] == pytest.approx(float(costs[0]))


def test_candidates_need_not_hold_the_dense_one():
    net = classpruning('EDSR', candidates=['1:4', '2:4'])
    x = torch.rand(2, 3, 8, 8)
    assert net.costs().max() < 1
    assert not torch.equal(net.dense.net(x), net.restore_with(x, '2:4'))
    assert net(x).shape == (2, 3, 16, 16)


def test_one_candidate_is_a_static_network():
    net = classpruning('EDSR', candidates=['2:4'])
    x = torch.rand(2, 3, 8, 8)
    assert net.classify(x).tolist() == [0, 0]
    assert torch.equal(net(x), net.restore_with(x, '2:4'))


@pytest.mark.parametrize('candidate', ['3:4', 3, -1, 1.0, None])
def test_unknown_candidates_are_named_with_those_there_are(edsr, candidate):
    with pytest.raises(UsageError, match='1:4, 2:4, 4:4'):
        edsr.restore_with(torch.rand(1, 3, 8, 8), candidate)


def test_training_runs_with_gradients_to_every_candidate_used():
    net = classpruning('EDSR').train()
    net(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])).sum().backward()
    layer = net.base.body[0].conv1
    assert layer.weight.grad.abs().sum() > 0
    assert all(bias.grad.abs().sum() > 0 for bias in (*layer.biases, layer.bias))


def test_training_and_eval_agree(edsr):
    net = copy.deepcopy(edsr)
    x, classes = torch.rand(3, 3, 8, 8), torch.tensor([0, 2, 1])
    wanted = net(x, classes)
    assert torch.equal(net.train()(x, classes), wanted)


# ------------------------------------------------------------------------- caches


def test_candidates_are_made_once():
    net = classpruning('EDSR')
    assert net.subnetwork('1:4').net is net.subnetwork(0).net


def changes() -> dict:
    """Ways in which weights change, by name."""
    other = classpruning('EDSR', seed=1)
    container = nn.Module()

    def load_parent(net: nn.Module) -> None:
        container.net = net
        container.load_state_dict({f'net.{key}': value for key, value in other.state_dict().items()})

    def train(net: nn.Module) -> None:
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net(torch.rand(2, 3, 8, 8), torch.tensor([0, 1])).square().mean().backward()
        optimizer.step()
        net.eval()

    return {
        'load_state_dict': lambda net: net.load_state_dict(other.state_dict()),
        'load_params': lambda net: net.load_params(other.state_dict()),
        'load_params_dense': lambda net: net.load_params(dense('EDSR', seed=2).state_dict()),
        'load_parent': load_parent,
        'train': train,
        'double': lambda net: net.double().float().half().float(),
    }


@pytest.mark.parametrize(
    'change', ['load_state_dict', 'load_params', 'load_params_dense', 'load_parent', 'train', 'double']
)
def test_candidates_are_made_anew_when_weights_change(change):
    net = classpruning('EDSR')
    x = torch.rand(1, 3, 8, 8)
    stale = net.restore_with(x, '1:4')
    changes()[change](net)
    fresh = net.restore_with(x, '1:4')
    net.forget_subnetworks()
    assert torch.equal(fresh, net.restore_with(x, '1:4'))
    assert not torch.equal(fresh, stale)


def test_eight_threads_make_each_candidate_once_and_restore_the_same():
    net = by_brightness()
    x = images_of([0, 1, 2, 1])
    wanted = copy.deepcopy(net)(x)
    found = in_threads(8, lambda _: (net(x), net.subnetwork('1:4').net))
    assert all(torch.equal(output, wanted) for output, _ in found)
    assert len({id(candidate) for _, candidate in found}) == 1


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_whole_and_independent(edsr, duplicate):
    assert edsr.subnetwork(0).net is not None
    twin = duplicate(edsr)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(twin(x), edsr(x))
    assert twin.reference_macs == edsr.reference_macs
    with torch.no_grad():
        twin.base.conv_last.weight.zero_()
    twin.forget_subnetworks()
    assert not torch.equal(twin(x), edsr(x))


def test_the_state_dict_holds_no_frozen_copy(edsr):
    before = list(edsr.state_dict())
    assert edsr.subnetwork(0).net is not None
    assert list(edsr.state_dict()) == before
    assert all(key.startswith(('base.', 'classifier.', 'log_price')) for key in before)


# ------------------------------------------------------------------------ options


def test_options_rebuild_the_network_and_are_plain_values(edsr):
    def kinds(value) -> set:
        if isinstance(value, dict):
            return {dict}.union(*(kinds(item) for item in value.values()))
        return {list}.union(*map(kinds, value)) if isinstance(value, list) else {type(value)}

    assert kinds(edsr.options) <= {dict, list, str, int, float, bool, type(None)}
    assert build_network(edsr.options).options == edsr.options


def test_own_patterns_and_skip():
    net = classpruning('EDSR', skip=[r'body\.0'], layers={r'body\.1': ['2:4', '3:4', '4:4']})
    reasons = {choice.name: choice.reason for choice in net.choices}
    assert reasons['body.0.conv1'] == 'named in skip'
    assert str(net.patterns('1:4')['body.1.conv1']) == '2:4'
    assert str(net.patterns('2:4')['body.1.conv1']) == '3:4'
    assert str(net.patterns('1:4')['conv_after_body']) == '1:4'


def test_own_weights():
    net = classpruning('EDSR', weights='own')
    plain = dense('EDSR', seed=3)
    net.load_params(plain.state_dict())
    x = torch.rand(1, 3, 8, 8)
    shared = classpruning('EDSR')
    shared.load_params(plain.state_dict())
    assert torch.equal(net.restore_with(x, '2:4'), shared.restore_with(x, '2:4'))  # both start from the magnitudes
    with torch.no_grad():
        for _, layer in sparse_layers(net.base):
            layer.weights[1].mul_(0.5)
    net.forget_subnetworks()
    assert not torch.equal(net.restore_with(x, '2:4'), shared.restore_with(x, '2:4'))
    with torch.no_grad():
        assert torch.equal(net.restore_with(x, '4:4'), plain(x))


def test_networks_of_before_there_were_units(tmp_path):
    net = classpruning('EDSR')
    options = {key: value for key, value in net.options.items() if key != 'unit'}
    write_checkpoint(tmp_path / 'old.pth', {'params': net.state_dict()}, options)
    old = load(tmp_path / 'old.pth')
    assert old.options == net.options
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(old.restore_with(x, '1:4'), net.restore_with(x, '1:4'))


@pytest.mark.parametrize('weights', ['shared', 'own'])
def test_masks_of_another_unit_are_refused_unless_they_fit(weights):
    ladder = {'candidates': ['4:16', '8:16', '16:16'], 'weights': weights}
    params = {}
    for unit in (1, 2, 4):
        net = build_network(network_g('EDSR', unit=unit, **ladder))
        net.load_params(dense('EDSR').state_dict())
        params[unit] = net.state_dict()
    finest, coarsest = (build_network(network_g('EDSR', unit=unit, **ladder)) for unit in (1, 4))
    for unit in (1, 2, 4):
        finest.load_params(params[unit])
    coarsest.load_params(params[4])
    for unit in (1, 2):
        with pytest.raises(
            UserError, match=r'^weights do not fit the network: .* keeps more of them than 4:16, unit 4$'
        ):
            coarsest.load_params(params[unit])


class TwoLayers(nn.Module):
    """A user's network, with a channel option of its own name."""

    def __init__(self, colours: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(colours, 8, 3, padding=1), nn.Conv2d(8, colours, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.leave(self.enter(x).relu())


@pytest.fixture
def two_layers(monkeypatch) -> str:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'TwoLayers', TwoLayers)
    return 'TwoLayers'


def test_a_network_of_the_users_own(two_layers):
    net = build_network({'type': 'ClassPruning', 'base': {'type': two_layers}, 'candidates': ['1:4', '4:4']}).eval()
    assert (net.num_in_ch, net.scale) == (4, 1)
    assert list(net.patterns('1:4')) == ['leave']
    assert net(torch.rand(2, 4, 5, 6)).shape == (2, 4, 5, 6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'base': {'type': 'EDVR'}}, 'EDVR cannot be pruned: it restores a sequence of frames'),
        ({'base': {'type': 'BasicVSR'}}, 'BasicVSR cannot be pruned: it restores a sequence of frames'),
        ({'base': {'type': 'ClassPruning'}}, 'a second time'),
        ({'base': {'type': 'NoSuchNet'}}, "base.type: 'NoSuchNet' is not in ARCH_REGISTRY"),
        ({'base': {}}, 'base.type: None is not in ARCH_REGISTRY'),
        ({'base': {'type': 'DnCNN', 'num_conv': 1}}, 'num_conv must be at least 2'),
        ({'base': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': -1}}, 'EDSR cannot be built'),
        ({'base': {'type': 'EDSR', 'upscale': 2}}, 'EDSR cannot be built'),
        ({'candidates': []}, 'at least one pattern'),
        ({'candidates': ['2-4']}, "'2-4' is not allowed"),
        ({'candidates': ['5:4']}, 'N:M with 1 <= N <= M'),
        ({'candidates': ['1:4', '2:8']}, 'same M'),
        ({'candidates': ['2:4', '1:4']}, 'sparsest first'),
        ({'candidates': ['2:4', '2:4']}, 'each once'),
        ({'block': 7}, 'no layer of EDSR can be pruned to 1:4, 2:4, 4:4: '),
        ({'weights': 'both'}, 'weights: .both. is not allowed'),
        ({'layers': {'body': ['1:4']}}, r'layers.body .*one N:4 for each of the 3 candidates'),
        ({'classifier': {'type': 'NoSuchClassifier'}}, "classifier.type: 'NoSuchClassifier'"),
    ],
)
def test_impossible_options_are_one_line(options, message):
    with pytest.raises(UsageError, match=message) as raised:
        build_network({**network_g('EDSR'), **options})
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda params: params.pop('conv_first.weight'), 'conv_first.weight is missing'),
        (lambda params: params.update(more=torch.zeros(1)), 'more is not a key of this network'),
        (
            lambda params: params.update({'conv_last.bias': torch.zeros(4)}),
            r'conv_last.bias has shape \(4,\), wanted \(3,\)',
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(change, message):
    net = classpruning('EDSR')
    before = copy.deepcopy(net.state_dict())
    params = dict(dense('EDSR', seed=5).state_dict())
    change(params)
    with pytest.raises(UserError, match=message):
        net.load_params(params)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
