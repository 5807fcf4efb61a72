"""Each mend: without it the failure appears, with it it does not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import basicsr.data.degradations
import basicsr.train
import pytest
import torch
import yaml
from basicsr.utils import dist_util, options
from tiny import run_python

from basicsr_classpruning import environment
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.safe_files import save_file


def unpatched(module: ModuleType) -> ModuleType:
    """A second copy of one of BasicSR's modules, as it was written."""
    spec = importlib.util.spec_from_file_location(f'unpatched_{module.__name__.split(".")[-1]}', module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def isolated(tmp_path: Path, code: str) -> str:
    """Code that imports ``environment`` without its package, which would apply every mend."""
    folder = Path(environment.__file__).parent
    package = tmp_path / 'basicsr_classpruning'
    package.mkdir()
    (package / '__init__.py').write_text('')
    for name in ('environment.py', 'errors.py'):
        (package / name).write_text((folder / name).read_text())
    return f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}'


_TORCHVISION = """
from basicsr_classpruning.environment import patch_torchvision_operators
try:
    import torchvision
    print('fits')
except RuntimeError as error:
    print(error)
patch_torchvision_operators()
import torchvision.models
print('mended')
"""


def test_torchvision_built_for_another_torch(tmp_path):
    done = run_python('-c', isolated(tmp_path, _TORCHVISION))
    assert done.returncode == 0, done.stderr
    without, with_mend = done.stdout.splitlines()
    if without == 'fits':
        pytest.skip('the installed torchvision fits the installed torch: nothing to mend')
    assert without == 'operator torchvision::nms does not exist'
    assert with_mend == 'mended'


def test_other_failures_of_torchvision_are_not_hidden(tmp_path):
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("something else")')
    code = 'from basicsr_classpruning.environment import *; patch_torchvision_operators()'
    done = run_python('-c', isolated(tmp_path, code))
    assert done.stderr.rstrip().endswith('RuntimeError: something else')


def test_functional_tensor(monkeypatch):
    name = 'torchvision.transforms.functional_tensor'
    monkeypatch.delitem(sys.modules, name, raising=False)
    if importlib.util.find_spec(name) is not None:
        pytest.skip('the installed torchvision still has transforms.functional_tensor')
    with pytest.raises(ModuleNotFoundError, match=name):
        unpatched(basicsr.data.degradations)
    environment.patch_functional_tensor()
    gray = unpatched(basicsr.data.degradations).rgb_to_grayscale(torch.full((1, 3, 2, 2), 0.5))
    torch.testing.assert_close(gray, torch.full((1, 1, 2, 2), 0.5), atol=1e-4, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_resuming_on_a_cpu(tmp_path):
    from basicsr_classpruning.pipeline import _TrainingRun

    state = {'epoch': 3, 'iter': 5, 'optimizers': [], 'schedulers': []}
    save_file(state, tmp_path / '5.state')
    opt = {
        'auto_resume': False, 'model_type': 'SRModel', 'network_g': {}, 'train': {}, 'world_size': 1,
        'path': {'resume_state': str(tmp_path / '5.state'), 'models': 'models', 'ignore_resume_networks': None},
    }  # fmt: skip
    with pytest.raises((AssertionError, RuntimeError), match=r'CUDA|NVIDIA'):
        basicsr.train.load_resume_state(opt)
    assert _TrainingRun([]).load_resume_state(opt) == state
    assert opt['path']['pretrain_network_g'].endswith('net_g_5.pth')


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason='needs a machine without a GPU')
def test_process_groups_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ZeroDivisionError):
        unpatched(dist_util).init_dist('pytorch')
    dist_util.init_dist('pytorch', init_method=f'file://{tmp_path / "rendezvous"}', rank=0, world_size=1)
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert dist_util.get_dist_info() == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_a_process_group_is_mended_once():
    once = dist_util._init_dist_pytorch
    environment.prepare()
    assert dist_util._init_dist_pytorch is once


def test_yaml_that_would_run_code(tmp_path):
    marker = tmp_path / 'ran'
    attack = f'!!python/object/apply:os.system ["touch {marker}"]'
    yaml.load(attack, Loader=unpatched(options).ordered_yaml()[0])
    assert marker.exists()
    marker.unlink()
    with pytest.raises(yaml.YAMLError, match='python/object/apply'):
        yaml.load(attack, Loader=options.ordered_yaml()[0])
    assert not marker.exists()


def test_forced_values_that_would_run_code(tmp_path):
    marker = tmp_path / 'ran'
    attack = f'[open({str(marker)!r}, "w")]'
    unpatched(options)._postprocess_yml_value(attack)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(yaml.YAMLError):
        options._postprocess_yml_value(attack)
    assert not marker.exists()


@pytest.mark.parametrize(
    ('text', 'value'),
    [('true', True), ('~', None), ('none', None), ('1e-4', '1e-4'), ('0.5', 0.5), ('[1, 2]', [1, 2]), ('a', 'a')],
)
def test_forced_values_are_plain(text, value):
    assert options._postprocess_yml_value(text) == value


def test_mended_options_keep_their_order():
    loader, _ = options.ordered_yaml()
    assert list(yaml.load('{b: 1, a: 2}', Loader=loader)) == ['b', 'a']


@pytest.mark.parametrize('version', [(3, 10), (3, 11), (3, 12)])
def test_supported_pythons(version):
    environment.check_python(version)


@pytest.mark.parametrize(('version', 'text'), [((3, 9), '3.9'), ((3, 13), '3.13'), ((4, 0), '4.0')])
def test_other_pythons_are_named(version, text):
    with pytest.raises(UserError, match=rf'^Python {text} is not supported: .* 3\.10, 3\.11 or 3\.12$'):
        environment.check_python(version)


def test_the_whole_of_basicsr_imports():
    import basicsr.archs
    import basicsr.data
    import basicsr.models

    assert 'DegradedImageDataset' in basicsr.utils.registry.DATASET_REGISTRY
