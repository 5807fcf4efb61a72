"""What is allowed in options, what is filled in, and the line that says what is wrong."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from whole_options import CLASSPRUNING, EDSR, SWINIR_NETWORK, TEST, changed, options, problem

import basicsr_classpruning  # noqa: F401  # registers the networks, losses and models
from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.config import load_network_options, load_options, validate, validate_network
from basicsr_classpruning.data.degradations import GaussianNoise, Number, base, register_degradation
from basicsr_classpruning.errors import UsageError


@pytest.mark.parametrize('text', [CLASSPRUNING, EDSR, TEST])
def test_files_pass_twice_and_stay_as_they_are(text):
    opt = options(text)
    before = copy.deepcopy(opt)
    once = validate(opt, 'FILE.yml')
    assert opt == before
    assert validate(once, 'FILE.yml') == once


def test_basicsr_shapes():
    opt = validate(options(EDSR), 'FILE.yml')
    assert opt['val']['val_freq'] == 5000
    assert isinstance(opt['val']['val_freq'], int)
    assert opt['network_g'] == options(EDSR)['network_g']
    assert opt['train']['optim_g'] == {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]}
    assert opt['train']['scheduler'] == {'type': 'MultiStepLR', 'milestones': [200000], 'gamma': 0.5}
    assert opt['val']['metrics']['psnr'] == {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': False}
    assert opt['datasets']['train']['io_backend'] == {'type': 'disk'}
    assert 'amp' not in opt['train']


def test_swinir_of_basicsr():
    opt = options(EDSR)
    opt.update(model_type='SwinIRModel', network_g=options(SWINIR_NETWORK))
    assert validate(opt, 'FILE.yml')['network_g'] == options(SWINIR_NETWORK)


def test_models_of_other_kinds_keep_their_own_keys():
    opt = options(EDSR)
    opt.update(model_type='SRGANModel', network_d={'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 64})
    opt['train'].update(net_d_iters=1, gan_opt={'type': 'GANLoss'}, optim_d={'type': 'Adam', 'lr': 1e-4})
    checked = validate(opt, 'FILE.yml')
    assert checked['network_d'] == opt['network_d']
    assert checked['train']['gan_opt'] == {'type': 'GANLoss'}
    opt['datasets']['train']['gtsize'] = 2
    assert problem(opt) == "datasets.train.gtsize: unknown key; did you mean 'gt_size'?"
    del opt['datasets']['train']['gtsize']
    opt['train']['ema_decay'] = 2
    assert problem(opt) == 'train.ema_decay: 2 is not allowed; a number of at least 0 and below 1'


def test_models_of_users_may_train_a_classpruning_network():
    if 'OwnModel' not in MODEL_REGISTRY:
        MODEL_REGISTRY.register()(type('OwnModel', (SRModel,), {}))
    opt = changed('network_g', options()['network_g'], EDSR)
    opt['model_type'] = 'OwnModel'
    assert validate(opt, 'FILE.yml')['network_g']['weights'] == 'shared'
    del opt['network_g']['base']
    assert problem(opt).startswith('network_g.base: is missing')


def test_video_models_of_basicsr_keep_their_networks():
    opt = changed('network_g', {'type': 'EDVR'}, EDSR)
    opt['model_type'] = 'EDVRModel'
    assert validate(opt, 'FILE.yml')['network_g'] == {'type': 'EDVR'}


def test_defaults_are_filled_in():
    opt = validate(options(), 'FILE.yml')
    train = opt['train']
    assert (train['total_iter'], train['amp'], train['channels_last'], train['grad_clip']) == (20, None, True, None)
    assert (train['mask_interval'], train['srste_decay'], train['on_nan']) == (10, 2e-4, 'stop')
    assert (train['on_collapse'], train['classifier_share'], train['explore']) == ('recover', 0.25, 0.1)
    assert train['budget_opt'] == {'type': 'ComputeBudgetLoss', 'target': 0.6}
    assert opt['val']['candidates'] is True
    assert opt['val']['budgets'] == []
    net = opt['network_g']
    assert (net['block'], net['share_taps'], net['unit'], net['skip'], net['weights'], net['layers']) == (
        1,
        False,
        1,
        [],
        'shared',
        None,
    )
    assert net['classifier'] == {'type': 'BandClassifier'}
    assert opt['path']['resume_state'] is None
    assert opt['logger'] == {'print_freq': 100, 'save_checkpoint_freq': 5000, 'use_tb_logger': False, 'wandb': None}
    assert opt['num_gpu'] == 'auto'


def test_without_stages_the_candidates_train_all_the_time():
    opt = changed('train.stages', ...)
    opt['train']['total_iter'] = 30
    assert validate(opt, 'FILE.yml')['train']['stages'] == {'supernet': 30, 'classifier': 0, 'joint': 0}


def test_a_static_network_has_one_candidate():
    assert validate(changed('network_g.candidates', ['8:16']), 'FILE.yml')['network_g']['candidates'] == ['8:16']


def test_testing_needs_no_validation_section():
    opt = validate(changed('val', ..., TEST), 'FILE.yml')
    assert opt['val'] == {'save_img': False, 'suffix': None, 'metrics': None, 'pbar': False}


CASES = [
    # unknown keys
    ('train.ampp', 'bf16', "train.ampp: unknown key; did you mean 'amp'?"),
    ('foo', 1, 'foo: unknown key; allowed are custom_imports, datasets, '),
    ('train.stages.foo', 1, 'train.stages.foo: unknown key; allowed are classifier, joint, supernet'),
    ('datasets.train.gtsize', 1, "datasets.train.gtsize: unknown key; did you mean 'gt_size'?"),
    ('network_g.base.num_feet', 1, "network_g.base.num_feet: unknown key of EDSR; did you mean 'num_feat'?"),
    ('network_g.classifier', {'num_fat': 1}, 'network_g.classifier.num_fat: unknown key of BandClassifier; '),
    ('train.optim_g.lrr', 1, "train.optim_g.lrr: unknown key of Adam; did you mean 'lr'?"),
    ('train.scheduler.periods', [20], 'train.scheduler.periods: unknown key of MultiStepRestartLR; '),
    ('train.pixel_opt.weight', 1, 'train.pixel_opt.weight: unknown key of L1Loss; '),
    ('val.metrics.psnr.crop_bordr', 1, 'val.metrics.psnr.crop_bordr: unknown key of calculate_psnr; '),
    # unknown names
    ('network_g.base.type', 'EDSRR', "network_g.base.type: unknown network 'EDSRR'; did you mean 'EDSR'"),
    ('network_g.base.type', 'Qqqqq', "network_g.base.type: unknown network 'Qqqqq'; allowed are "),
    ('train.pixel_opt.type', 'L2Loss', "train.pixel_opt.type: unknown loss 'L2Loss'; did you mean 'L1Loss'"),
    ('val.metrics.psnr.type', 'calculate_psn', "val.metrics.psnr.type: unknown metric 'calculate_psn'; did you mean"),
    ('datasets.train.type', 'PairedImages', "datasets.train.type: unknown data set 'PairedImages'; did you mean"),
    ('model_type', 'SRModle', "model_type: unknown model 'SRModle'; did you mean 'SRModel'"),
    ('network_g.classifier', {'type': 'X'}, "network_g.classifier.type: unknown network 'X'; "),
    ('train.optim_g.type', 'SGD', "train.optim_g.type: 'SGD' is not allowed; Adam"),
    ('train.scheduler.type', 'Cosine', "train.scheduler.type: 'Cosine' is not allowed; MultiStepLR, "),
    # base networks out of scope
    ('network_g.base.type', 'EDVR', "network_g.base.type: 'EDVR' is not allowed: it restores a sequence of frames; "),
    ('network_g.base.type', 'ClassPruning', "network_g.base.type: 'ClassPruning' is not allowed: "),
    # candidates
    ('network_g.candidates', ['8-16'], "network_g.candidates[0]: '8-16' is not allowed; N:M with 1 <= N <= M <= 32"),
    ('network_g.candidates', ['4:16', '5:4'], "network_g.candidates[1]: '5:4' is not allowed; N:M with "),
    ('network_g.candidates', ['0:4'], "network_g.candidates: ['0:4'] is not allowed; at least one N:M with N above 0"),
    ('network_g.candidates', [4], 'network_g.candidates[0]: 4 is not allowed; a candidate N:M'),
    ('network_g.candidates', [], 'network_g.candidates: [] is not allowed; a list of candidates N:M, sparsest first'),
    ('network_g.candidates', '2:4', "network_g.candidates: '2:4' is not allowed; a list of candidates"),
    (
        'network_g.candidates',
        ['8:16', '4:16'],
        "network_g.candidates: ['8:16', '4:16'] is not allowed; sparsest first and each once: ['4:16', '8:16']",
    ),
    ('network_g.candidates', ['4:16', '4:16'], "network_g.candidates: ['4:16', '4:16'] is not allowed; sparsest first"),
    ('network_g.candidates', ['1:4', '8:16'], "network_g.candidates: ['1:4', '8:16'] is not allowed; all candidates"),
    ('network_g.block', 0, 'network_g.block: 0 is not allowed; a whole number of at least 1'),
    ('network_g.unit', 3, 'network_g.unit: 3 is not allowed; 1, 2 or 4'),
    ('network_g.unit', '4', "network_g.unit: '4' is not allowed; 1, 2 or 4"),
    ('network_g.skip', ['('], "network_g.skip[0]: '(' is not allowed; a regular expression"),
    ('network_g.weights', 'none', "network_g.weights: 'none' is not allowed; 'shared' or 'own'"),
    ('network_g.layers', {'a': ['4:16']}, "network_g.layers.a: ['4:16'] is not allowed; one N:16 for each of the 3"),
    ('network_g.layers', {'a': ['8:16', '4:16', '16:16']}, "network_g.layers.a: ['8:16', '4:16', '16:16'] is not"),
    ('network_g.layers', {'a': ['1:4', '2:4', '4:4']}, "network_g.layers.a: ['1:4', '2:4', '4:4'] is not allowed"),
    ('network_g.layers', {'(': ['1:4']}, "network_g.layers.(: '(' is not allowed; a regular expression"),
    # types and values
    ('train.budget_opt.target', 1.4, 'train.budget_opt.target: 1.4 is not allowed; a number above 0 and at most 1'),
    ('train.budget_opt.target', '0.5', "train.budget_opt.target: '0.5' is not allowed; a number above 0 and at most 1"),
    ('train.amp', 'bf17', "train.amp: 'bf17' is not allowed; 'bf16', 'fp16' or null"),
    ('train.channels_last', 1, 'train.channels_last: 1 is not allowed; true or false'),
    ('train.grad_clip', float('nan'), 'train.grad_clip: nan is not allowed; a number above 0 or null'),
    ('train.grad_clip', float('inf'), 'train.grad_clip: inf is not allowed; a number above 0 or null'),
    ('train.optim_g.lr', ..., 'train.optim_g.lr: is missing; a number above 0'),
    ('train.optim_g.betas', [0.9], 'train.optim_g.betas: [0.9] is not allowed; a list of 2 numbers'),
    ('train.optim_g.betas', [0.9, 1], 'train.optim_g.betas[1]: 1 is not allowed; a number of at least 0 and below 1'),
    ('train', [], 'train: [] is not allowed; a mapping with the keys'),
    ('scale', True, 'scale: true is not allowed; a whole number of at least 1'),
    ('scale', 1.5, 'scale: 1.5 is not allowed; a whole number of at least 1'),
    ('num_gpu', 'auot', "num_gpu: 'auot' is not allowed; a whole number of at least 0 or 'auto'"),
    ('num_gpu', -1, 'num_gpu: -1 is not allowed; a whole number of at least 0 or'),
    ('datasets', None, 'datasets: null is not allowed; a mapping'),
    ('val.val_freq', 0, 'val.val_freq: 0 is not allowed; a whole number of at least 1'),
    ('val.budgets', [0.5, 2], 'val.budgets[1]: 2 is not allowed; a number above 0 and at most 1'),
    ('name', 'a/b', "name: 'a/b' is not allowed; it names a folder"),
    ('name', 'a\nb', "name: 'a\\nb' is not allowed; it names a folder"),
    ('name', 3, 'name: 3 is not allowed; text'),
    ('model_type', 3, 'model_type: 3 is not allowed; text'),
    ('model_type', ..., 'model_type: is missing; ClassPruningModel'),
    ('network_g.base.num_feat', '64', "network_g.base.num_feat: '64' is not allowed; a number (default: 64)"),
    (
        'network_g.base',
        {'type': 'SRVGGNetCompact', 'upscale': 2, 'act_type': 3},
        "network_g.base.act_type: 3 is not allowed; text (default: 'prelu')",
    ),
    ('network_g.base.num_in_ch', ..., 'network_g.base.num_in_ch: is missing; EDSR needs it'),
    ('network_g.base.type', ..., 'network_g.base.type: is missing; text'),
    ('custom_imports', 'nix', "custom_imports: 'nix' is not allowed; a list of module names"),
    ('custom_imports', ['no_such_module'], 'custom_imports[0]: no_such_module cannot be imported: ModuleNotFoundError'),
    ('custom_imports', ['os; x'], "custom_imports[0]: 'os; x' is not allowed; the name of a module"),
    # things that do not agree
    ('train.freeze_dense', True, 'train.freeze_dense: true is not allowed with shared weights, '),
    (
        'network_g.type',
        'EDSR',
        "network_g.type: 'EDSR' is not allowed; 'ClassPruning' (a dense network is trained with",
    ),
    ('network_g.base.upscale', 4, 'network_g.base.upscale: 4 is not allowed; the same as scale (2)'),
    ('train.total_iter', 21, 'train.total_iter: 21 is not allowed; the sum of the stages (20), or none'),
    ('train.sparse_batch', 2, 'train.sparse_batch: is not allowed with split turn; split none'),
    ('train.stages', {}, 'train.stages: all lengths are 0'),
    ('train.stages', ..., 'train.total_iter: is missing; '),
    ('train.pixel_opt', ..., 'train.pixel_opt: is missing; a loss'),
    (
        'train.scheduler',
        {'type': 'CosineAnnealingRestartLR', 'periods': [5]},
        'train.scheduler.periods: [5] is not allowed; together at least total_iter (20)',
    ),
    (
        'train.scheduler',
        {'type': 'CosineAnnealingRestartLR', 'periods': [15, 5]},
        'train.scheduler.restart_weights: needs 2 values',
    ),
    ('datasets.train.gt_size', 97, 'datasets.train.gt_size: 97 is not allowed; a multiple of scale (2)'),
    ('datasets.train.gt_size', ..., 'datasets.train.gt_size: is missing'),
    ('datasets.train.batch_size_per_gpu', ..., 'datasets.train.batch_size_per_gpu: is missing'),
    ('datasets.train', ..., 'datasets.train: is missing'),
    ('datasets.test', {'name': 'x', 'type': 'y'}, 'datasets.test: is not a data set of this phase; allowed are train'),
    ('datasets.train.degradation', {'type': 'noise'}, 'datasets.train.degradation.sigma: is missing; '),
    (
        'datasets.train.degradation',
        {'type': 'noise', 'sigma': [0, 50]},
        "datasets.train.degradation.type: 'noise' is not allowed with scale 2",
    ),
    (
        'datasets.train.degradation',
        {'type': 'jpeg', 'quality': [90, 10]},
        'datasets.train.degradation.quality: [90, 10] is not allowed; [least, greatest]',
    ),
    (
        'datasets.train.degradation',
        {'type': 'bicubic', 'sigma': [0, 50]},
        'datasets.train.degradation.sigma: is not an option of degradation bicubic',
    ),
    ('datasets.val.io_backend', {'readonly': True}, 'datasets.val.io_backend.readonly: is an option of type lmdb only'),
    ('datasets.val.color', 'gray', "datasets.val.color: 'gray' is not allowed; 'y' or null"),
    ('logger', {'wandb': {'project': 'x'}}, 'logger.use_tb_logger: false is not allowed with wandb'),
]


@pytest.mark.parametrize(
    ('candidates', 'unit', 'layers', 'message'),
    [
        (['3:6', '6:6'], 4, None, 'network_g.unit: 4 is not allowed with 3:6; it must divide M'),
        (
            ['4:16', '6:16', '16:16'],
            4,
            None,
            "network_g.candidates[1]: '6:16' is not allowed with unit 4; N one of 4, 8, 12, 16",
        ),
        (
            ['4:16', '8:16', '16:16'],
            2,
            {'body': ['4:16', '7:16', '16:16']},
            "network_g.layers.body[1]: '7:16' is not allowed with unit 2; N one of 2, 4, 6, 8, 10, 12, 14, 16",
        ),
    ],
)
def test_patterns_that_do_not_fit_the_unit(candidates, unit, layers, message):
    network = {**options()['network_g'], 'candidates': candidates, 'unit': unit, 'layers': layers}
    assert problem(changed('network_g', network)) == message


@pytest.mark.parametrize(('key', 'value', 'message'), CASES, ids=[f'{case[0]}-{i}' for i, case in enumerate(CASES)])
def test_problems(key, value, message):
    assert problem(changed(key, value)).startswith(message)


def test_no_data_sets():
    assert problem(changed('datasets', {}, TEST)) == 'datasets: is empty; at least one data set, e.g. test_1'


def test_our_keys_are_refused_where_nothing_reads_them():
    assert problem(changed('train.amp', 'bf16', EDSR)) == (
        'train.amp: unknown key; it is read when training with model_type GuardedSRModel'
    )
    assert problem(changed('val.budgets', [0.5], EDSR)) == (
        'val.budgets: unknown key; it is read when training with model_type ClassPruningModel'
    )
    opt = changed('train.amp', 'bf16', EDSR)
    opt['model_type'] = 'GuardedSRModel'
    assert validate(opt, 'FILE.yml')['train']['amp'] == 'bf16'


def test_classpruning_needs_its_model():
    opt = changed('network_g', options()['network_g'], EDSR)
    assert problem(opt) == "model_type: 'SRModel' is not allowed with a ClassPruning network; ClassPruningModel"


def test_plain_video_network():
    assert problem(changed('network_g', {'type': 'EDVR'}, EDSR)).startswith("network_g.type: 'EDVR' is not allowed ")


@pytest.fixture
def haze(monkeypatch):
    """A degradation of the user's own, which shares a key with another one."""

    @register_degradation
    class Haze(GaussianNoise):
        type = 'haze'
        place = 100
        options = (Number('sigma', 0, 1, 'how thick'),)

        @classmethod
        def from_values(cls, values, scale):
            return cls(values[0], values[0])

    yield
    del base._registered['haze']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'type': 'haze', 'sigma': 2}, 'sigma: 2 is not allowed; a number of at least 0 and at most 1'),
        ({'type': 'haze'}, 'sigma: is missing; a number'),
        ({'type': 'haze', 'sigma': 0.5, 'quality': [1, 2]}, 'quality: is not an option of degradation haze'),
        ({'type': 'haze', 'sigma': 0.5, 'sigmas': 1}, "sigmas: unknown key; did you mean 'sigma'?"),
        ({'type': 'hase'}, "type: 'hase' is not allowed; 'noise', 'jpeg', 'bicubic', 'photo_noise' or 'haze'"),
        ({'sigma': 1}, 'type: is missing'),
        ('noise', "'noise' is not allowed; a mapping such as {type: noise, sigma: [0, 50]}"),
    ],
)
def test_degradations_of_the_users_own(haze, options, message):
    opt = changed('scale', 1)
    opt['datasets']['train']['degradation'] = {'type': 'haze', 'sigma': 0.5}
    opt['network_g']['base'] = {'type': 'DnCNN'}
    assert validate(opt, 'FILE.yml')['datasets']['train']['degradation'] == {'type': 'haze', 'sigma': 0.5}
    opt['datasets']['train']['degradation'] = options
    assert problem(opt).removeprefix('datasets.train.degradation').lstrip('.: ').startswith(message)


def test_degradation_that_needs_a_scale():
    opt = changed('scale', 1)
    opt['network_g']['base'] = {'type': 'DnCNN'}
    assert problem(opt).startswith('scale: 1 is not allowed with the bicubic degradation of datasets.train; 2 or more')


def test_phase_is_checked_against_what_is_wanted():
    with pytest.raises(UsageError, match=r'unknown key; it is read when training$'):
        validate(options(EDSR), 'FILE.yml', is_train=False)
    with pytest.raises(UsageError, match=r'train: is missing'):
        validate(options(TEST), 'FILE.yml', is_train=True)


@pytest.mark.parametrize(
    'opt',
    [None, [], 'text', 3, {}, {3: 4}, {'datasets': 3}]
    + [{'model_type': 'SRModel', key: 4} for key in (3, 'datasets', 'network_g', 'train', 'path', 'custom_imports')],
)
def test_what_is_no_options_file(opt):
    problem(opt)


def test_custom_imports_bring_in_the_users_network(tmp_path, monkeypatch):
    (tmp_path / 'users_arch.py').write_text(
        'from basicsr.utils.registry import ARCH_REGISTRY\n'
        '@ARCH_REGISTRY.register()\n'
        'class UsersNetwork:\n'
        '    def __init__(self, width, **anything): ...\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    opt = changed('network_g.base', {'type': 'UsersNetwork', 'width': 3, 'whatever': 'x'})
    assert problem(opt).startswith("network_g.base.type: unknown network 'UsersNetwork'")
    opt['custom_imports'] = ['users_arch']
    assert validate(opt, 'FILE.yml')['network_g']['base']['whatever'] == 'x'
    del opt['network_g']['base']['width']
    assert problem(opt) == 'network_g.base.width: is missing; UsersNetwork needs it'


def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch):
    (tmp_path / 'users_broken_arch.py').write_text('raise RuntimeError("two\\nlines")\n')
    monkeypatch.syspath_prepend(tmp_path)
    message = problem(changed('custom_imports', ['users_broken_arch']))
    assert message == 'custom_imports[0]: users_broken_arch cannot be imported: RuntimeError: two\\nlines'


def test_refusals_have_reasons():
    from basicsr.utils.registry import ARCH_REGISTRY

    plain = {'EDSR', 'MSRResNet', 'RCAN', 'RRDBNet', 'SRVGGNetCompact', 'ECBSR', 'RIDNet', 'SwinIR', 'DnCNN', 'NAFNet'}
    assert not [name for name in plain if refusal(name)]
    entries = {name: entry.__module__ for name, entry in ARCH_REGISTRY}
    of_basicsr = {name.removesuffix('_basicsr') for name, module in entries.items() if module.startswith('basicsr.')}
    assert {name for name in of_basicsr if refusal(name) is None} == plain - {'DnCNN', 'NAFNet'}


def test_network_options(tmp_path):
    base = {'type': 'SRVGGNetCompact', 'num_feat': 32}
    path = tmp_path / 'arch.yml'
    for content in (base, {'network_g': base}, changed('network_g', base, EDSR)):
        path.write_text(yaml.safe_dump(content))
        assert load_network_options(str(path)) == base
    path.write_text(yaml.safe_dump({'network_g': options()['network_g']}))
    assert load_network_options(str(path))['block'] == 1


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([], 'is no options file'),
        ({}, 'network_g: is missing'),
        ({'network_g': 3}, 'network_g: 3 is not allowed'),
        ({'type': 'EDSRR'}, "type: unknown network 'EDSRR'"),
        ({'type': 'EDVR'}, "type: 'EDVR' is not allowed"),
        ({'type': 'EDSR', 'num_in_ch': 3}, 'num_out_ch: is missing'),
        ({'network_g': {'type': 'ClassPruning', 'base': {}}}, 'network_g.base.type: is missing'),
        ({'type': 'ClassPruning', 'base': {'type': 'EDSR'}, 'candidates': ['1']}, "candidates[0]: '1' is not allowed"),
        ({'network_g': {'type': 'EDSR'}, 'custom_imports': ['nix.nix']}, 'custom_imports[0]: nix.nix cannot'),
    ],
)
def test_network_options_problems(tmp_path, content, message):
    path = tmp_path / 'arch.yml'
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as caught:
        load_network_options(str(path))
    assert str(caught.value).startswith(f'{path}: {message}')


def test_validate_network_names_its_key():
    with pytest.raises(UsageError, match=r'^FILE: arch\.base\.type: is missing'):
        validate_network({'type': 'ClassPruning', 'base': {}, 'candidates': ['2:4']}, 'FILE', 'arch')


def test_load_options_names_the_file(tmp_path: Path):
    path = tmp_path / 'o.yml'
    path.write_text(CLASSPRUNING.replace('target: 0.6', 'target: 1.4'))
    with pytest.raises(UsageError) as caught:
        load_options(str(path))
    assert str(caught.value) == (f'{path}: train.budget_opt.target: 1.4 is not allowed; a number above 0 and at most 1')
