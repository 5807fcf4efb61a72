"""`python basicsr_classpruning/train.py` and `test.py`, as in every BasicSR descendant; tools as files."""

from __future__ import annotations

from tiny import REPOSITORY, run_python, training_options, write_yaml

TRAIN, TEST = (str(REPOSITORY / 'basicsr_classpruning' / name) for name in ('train.py', 'test.py'))


def test_a_network_is_trained_and_tested(tmp_path, pictures):
    options = training_options(pictures)
    options['train']['stages'] = {'supernet': 2}
    data = {key: value for key, value in options['datasets']['train'].items() if not key.startswith(('use_', 'batch'))}
    trained = run_python(TRAIN, '-opt', write_yaml(tmp_path / 'train.yml', options), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    weights = 'experiments/tiny/models/net_g_latest.pth'
    assert (tmp_path / weights).is_file()

    del options['train'], options['logger']
    options['datasets'] = {'test': {**data, 'name': 'seen', 'type': 'DegradedImageDataset'}}
    for key in ('gt_size', 'num_worker_per_gpu'):
        options['datasets']['test'].pop(key, None)
    options['path'] = {'pretrain_network_g': weights}
    options['val'] = {'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}
    tested = run_python(TEST, '-opt', write_yaml(tmp_path / 'test.yml', options), cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert (tmp_path / 'results/tiny').is_dir()
    assert 'average MACs' in tested.stdout + tested.stderr


def test_a_wrong_call_is_one_line(tmp_path):
    result = run_python(TEST, '-opt', 'none.yml', cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert 'none.yml' in line


def test_tools_find_each_other_when_run_as_files(tmp_path):
    """Python then looks for modules in the script's folder only."""
    scripts = [
        path for path in (REPOSITORY / 'tools').rglob('[!_]*.py') if "__name__ == '__main__'" in path.read_text()
    ]
    assert len(scripts) > 5
    code = (
        'import os, runpy, sys\n'
        f'sys.path.insert(0, {str(REPOSITORY)!r})\n'
        'import basicsr_classpruning\n'
        'del sys.path[0]\n'
        'for script in sys.argv[1:]:\n'
        '    sys.path[0] = os.path.dirname(script)\n'
        '    runpy.run_path(script)\n'
        '    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:\n'
        '        del sys.modules[name]\n'
    )
    done = run_python('-c', code, *map(str, scripts), cwd=tmp_path, PYTHONPATH='')
    assert done.returncode == 0, done.stderr
