"""A folded ECBSR computes what BasicSR's own does, from the network and from its checkpoint."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs.ecbsr_arch import ECBSR
from torch import nn

import basicsr_classpruning
from basicsr_classpruning.archs.ecbsr_adapter import fold_ecbsr, fold_ecbsr_state_dict
from basicsr_classpruning.errors import UserError

OPTIONS = {
    'num_in_ch': 3,
    'num_out_ch': 3,
    'num_block': 2,
    'num_channel': 8,
    'with_idt': True,
    'act_type': 'prelu',
    'scale': 2,
}


def build(**changes) -> ECBSR:
    torch.manual_seed(0)
    net = ECBSR(**{**OPTIONS, **changes})
    with torch.no_grad():  # every branch matters: some start a thousand times smaller than the others
        for name, parameter in net.named_parameters():
            if name.endswith(('scale', 'bias')):
                parameter.normal_(0, 0.1)
    return net.eval()


@pytest.mark.parametrize('with_idt', [False, True])
@pytest.mark.parametrize('act_type', ['prelu', 'relu', 'rrelu', 'softplus', 'linear'])
@pytest.mark.parametrize('channels', [1, 3])
def test_outputs_agree_in_eval_mode(with_idt, act_type, channels):
    net = build(with_idt=with_idt, act_type=act_type, num_in_ch=channels, num_out_ch=channels)
    x = torch.rand(2, channels, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(fold_ecbsr(net)(x), net(x), rtol=1e-5, atol=1e-5)


def test_outputs_agree_with_the_branches_of_training():
    net = build().train()
    folded = fold_ecbsr(net)
    x = torch.rand(2, 3, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-5)
    assert folded.training


def test_identity_applies_where_the_channel_numbers_agree():
    # Three input channels and three features: the first block, too, has an identity branch.
    net = build(num_channel=3)
    assert net.backbone[0].with_idt
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fold_ecbsr(net)(x), net(x), rtol=1e-5, atol=1e-5)


def test_only_plain_convolutions_and_activations_are_left():
    folded = fold_ecbsr(build())
    expected = {f'backbone.{i}.conv.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    expected |= {f'backbone.{i}.act.weight' for i in range(3)}
    assert set(folded.state_dict()) == expected
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.kernel_size, c.padding) for c in convolutions] == [((3, 3), (1, 1))] * 4


def test_training_the_folded_network_leaves_the_original_alone():
    net = build()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold_ecbsr(net)
    folded(torch.rand(1, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        for parameter in folded.parameters():
            assert parameter.grad is not None
            parameter -= parameter.grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_checkpoint_is_folded_once():
    net = build()
    folded = fold_ecbsr_state_dict({'type': 'ECBSR', **OPTIONS}, net.state_dict())
    expected = fold_ecbsr(net).state_dict()
    assert folded.keys() == expected.keys()
    assert all(torch.equal(folded[key], expected[key]) for key in expected)
    again = fold_ecbsr_state_dict(OPTIONS, folded)
    assert all(again[key] is folded[key] for key in folded)


def test_a_checkpoint_of_other_options_is_refused_in_one_line():
    with pytest.raises(UserError, match=r'do not fit the ECBSR.*backbone') as caught:
        fold_ecbsr_state_dict({**OPTIONS, 'num_channel': 16}, build().state_dict())
    assert '\n' not in str(caught.value)


def test_options_of_another_ecbsr_are_named_when_a_file_is_loaded(tmp_path):
    torch.save({'params': build().state_dict()}, tmp_path / 'net.pth')
    with pytest.raises(UserError, match=r'do not fit the ECBSR.*backbone'):
        basicsr_classpruning.load(tmp_path / 'net.pth', {'type': 'ECBSR', **OPTIONS, 'num_channel': 16})
