"""The command: what it prints, and that each wrong call is one line with its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import NETWORKS, classpruning, dense, network_g, run_python, training_options, write_yaml

from basicsr_classpruning.cli import main
from basicsr_classpruning.safe_files import save_file
from basicsr_classpruning.version import __version__


@pytest.fixture(scope='module')
def files(tmp_path_factory, pictures) -> dict[str, str]:
    """Files to call the command with, by what they are."""
    folder = tmp_path_factory.mktemp('files')
    net, plain = classpruning('EDSR'), dense('EDSR')
    save_file({'params': net.state_dict(), 'network_g': net.options}, folder / 'net.pth')
    save_file({'params': plain.state_dict()}, folder / 'dense.pth')
    options = training_options(pictures)
    wrong = {
        'unknown_key': {**options, 'colour': 1},
        'unknown_network': {**options, 'network_g': network_g('EDSR') | {'base': {'type': 'EDSSR'}}},
        'unknown_loss': training_options(pictures, pixel_opt={'type': 'L3Loss'}),
        'no_pattern': {**options, 'network_g': network_g('EDSR', candidates=['2-4'])},
        'wrong_order': {**options, 'network_g': network_g('EDSR', candidates=['2:4', '1:4'])},
        'odd_unit': {**options, 'network_g': network_g('EDSR', unit=3)},
        'no_unit_of_n': {**options, 'network_g': network_g('EDSR', unit=2)},
        'does_not_divide': {**options, 'network_g': network_g('EDSR', block=7)},
        'does_not_fit': {**options, 'path': {'pretrain_network_g': str(folder / 'other.pth')}},
        'no_checkpoint': {**options, 'path': {'pretrain_network_g': str(folder / 'none.pth')}},
    }
    save_file({'params': dense('DnCNN').state_dict()}, folder / 'other.pth')
    paths = {name: write_yaml(folder / f'{name}.yml', content) for name, content in wrong.items()}
    paths['train'] = write_yaml(folder / 'train.yml', options)
    paths['arch'] = write_yaml(folder / 'arch.yml', {'network_g': NETWORKS['EDSR']})
    (folder / 'hostile.yml').write_text(f'!!python/object/apply:os.system ["touch {folder}/ran"]')
    (folder / 'text.pth').write_text('no checkpoint')
    return {**paths, 'folder': str(folder), 'net': str(folder / 'net.pth'), 'dense': str(folder / 'dense.pth'),
            'hostile': str(folder / 'hostile.yml'), 'text': str(folder / 'text.pth')}  # fmt: skip


def called(capsys, *argv: str) -> tuple[int, str, list[str]]:
    """Status, output and the lines of errors of a call."""
    capsys.readouterr()
    status = main(list(argv))
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


# --------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ('argv', 'status', 'message'),
    [
        ([], 2, 'COMMAND'),
        (['sharpen'], 2, "invalid choice: 'sharpen'"),
        (['analyze', '--size', '3x8x8'], 2, 'one of the arguments --model -opt is required'),
        (['analyze', '--model', '{net}'], 2, '--size'),
        (['analyze', '--model', '{net}', '--size', '3x64'], 2, 'write channels, height and width'),
        (['analyze', '--model', '{net}', '--size', '3x0x64'], 2, 'write channels, height and width'),
        (['analyze', '--model', '{net}', '--size', '3x99999x99999'], 2, 'at most'),
        (['analyze', '--model', '{net}', '--size', '1x64x64'], 2, 'this network takes 3 channel'),
        (['analyze', '--model', '{net}', '--size', '3x8x8', '--backend', 'gpu'], 2, "invalid choice: 'gpu'"),
        (['analyze', '--model', '{net}', '--size', '3x8x8', '--colour'], 2, '--colour'),
        (['analyze', '--model', '{folder}/none.pth', '--size', '3x8x8'], 1, '{folder}/none.pth: no such file'),
        (['analyze', '--model', '{folder}', '--size', '3x8x8'], 1, '{folder}: '),
        (['analyze', '--model', '{text}', '--size', '3x8x8'], 1, '{text}: not a checkpoint'),
        (['analyze', '--model', '{dense}', '--size', '3x8x8', '--arch', '{folder}/none.yml'], 2, 'none.yml'),
        (['analyze', '--model', '{dense}', '--size', '3x8x8', '--import', 'no_such_module'], 2, 'no_such_module'),
        (['analyze', '-opt', '{unknown_network}', '--size', '3x8x8'], 2, "unknown network 'EDSSR'"),
        (['analyze', '-opt', '{hostile}', '--size', '3x8x8'], 2, '{hostile}: '),
        (['analyze', '--model', '{net}', '--size', '3x8x8', '--json', '{folder}/no/x.json'], 2, 'existing folder'),
        (['train'], 2, '-opt'),
        (['train', '-opt', '{folder}/none.yml'], 2, 'none.yml'),
        (['train', '-opt', '{train}', '--colour'], 2, '--colour'),
        (['train', '-opt', '{train}', '--force_yml', 'train:colour=1'], 2, 'colour'),
        (['train', '-opt', '{train}', '--launcher', 'pytorch'], 2, 'torchrun'),
        (['train', '-opt', '{hostile}'], 2, '{hostile}: '),
        (['train', '-opt', '{unknown_key}'], 2, 'colour'),
        (['train', '-opt', '{unknown_network}'], 2, "'EDSSR'"),
        (['train', '-opt', '{unknown_loss}'], 2, "'L3Loss'"),
        (['train', '-opt', '{no_pattern}'], 2, "'2-4'"),
        (['train', '-opt', '{wrong_order}'], 2, 'sparsest first'),
        (['train', '-opt', '{odd_unit}'], 2, 'network_g.unit: 3 is not allowed; 1, 2 or 4'),
        (['train', '-opt', '{no_unit_of_n}'], 2, "candidates[0]: '1:4' is not allowed with unit 2; N one of 2, 4"),
        (['prune', '{dense}', '--out', '{folder}/x', '--unit', '3'], 2, '--unit: invalid choice: 3'),
        (['prune', '{dense}', '--arch', '{arch}', '--out', '{folder}/x', '--unit', '2'], 2,
         "'1:4' is not allowed with unit 2; N one of 2, 4"),
        (['prune', '{dense}', '--arch', '{arch}', '--out', '{folder}/x', '--candidates', '3:6', '--unit', '4'], 2,
         '--unit 4 is not allowed with 3:6; it must divide M'),
        (['train', '-opt', '{no_checkpoint}'], 2, '{folder}/none.pth: no such file'),
        (['test', '-opt', '{train}'], 2, '{train}'),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(capsys, tmp_path, monkeypatch, files, argv, status, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    found, _, lines = called(capsys, *(part.format(**files) for part in argv))
    assert found == status
    assert len(lines) == 1, lines
    assert lines[0].startswith('classpruning: error: ')
    assert message.format(**files) in lines[0]
    assert not (Path(files['folder']) / 'ran').exists()


@pytest.mark.parametrize(
    ('name', 'status', 'message'),
    [
        ('does_not_divide', 2, 'no layer of EDSR can be pruned to 1:4, 2:4, 4:4'),
        ('does_not_fit', 1, '{folder}/other.pth: weights do not fit'),
    ],
)
def test_what_shows_when_the_network_is_built_ends_the_log(capsys, tmp_path, monkeypatch, files, name, status, message):
    monkeypatch.chdir(tmp_path)
    found, _, lines = called(capsys, 'train', '-opt', files[name])
    assert found == status
    assert lines[-1].startswith('classpruning: error: ')
    assert message.format(**files) in lines[-1]
    assert not any('Traceback' in line for line in lines)
    assert not list(tmp_path.rglob('*.pth'))


def test_wrong_options_leave_no_folder(capsys, tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    for name in ('unknown_key', 'unknown_loss', 'no_pattern', 'no_checkpoint'):
        called(capsys, 'train', '-opt', files[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
        (KeyboardInterrupt(), 130, 'classpruning: interrupted'),
        (MemoryError(), 1, 'classpruning: error: not enough memory'),
        (OSError(28, 'No space left on device', '/disk/file'), 1, 'classpruning: error: /disk/file: No space left'),
    ],
)
def test_failures_outside_the_program_are_one_line(capsys, monkeypatch, files, error, status, message):
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr('basicsr_classpruning.cli.analyze.run', fail)
    found, _, lines = called(capsys, 'analyze', '--model', files['net'], '--size', '3x8x8')
    assert found == status
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_mistakes_of_the_program_are_not_hidden(monkeypatch, files):
    monkeypatch.setattr('basicsr_classpruning.cli.analyze.run', lambda _args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(['analyze', '--model', files['net'], '--size', '3x8x8'])


# ----------------------------------------------------------------------- analyze


def analyzed(capsys, tmp_path: Path, *argv: str) -> tuple[str, dict]:
    status, out, lines = called(capsys, 'analyze', *argv, '--json', str(tmp_path / 'a.json'))
    assert (status, lines) == (0, [])
    return out, json.loads((tmp_path / 'a.json').read_text())


def test_analyze_of_a_checkpoint(capsys, tmp_path, files):
    out, report = analyzed(capsys, tmp_path, '--model', files['net'], '--size', '3x24x16')
    net = classpruning('EDSR')
    macs = net.macs(24, 16)
    assert report['network'] == 'EDSR'
    assert report['size'] == [3, 24, 16]
    assert report['no_patches_because'] == ''
    assert 'runs in patches' in out
    assert report['candidates'] == ['1:4', '2:4', '4:4']
    assert report['macs_dense'] == macs.dense
    assert report['macs'] == list(macs.candidates)
    assert report['macs_classifier'] == macs.classifier
    assert report['saved'] == pytest.approx([1 - cost for cost in macs.costs])
    assert report['params'] == sum(parameter.numel() for parameter in dense('EDSR').parameters())
    first = report['layers'][0]
    assert (first['name'], first['pruned'], first['reason']) == (
        'conv_first', False, 'the first layer',
    )  # fmt: skip
    assert sum(layer['dense'] for layer in report['layers']) == macs.dense
    assert f'{macs.dense:,}' in out
    assert 'the first layer' in out
    assert f'{report["saved"][0]:.1%}' in out


def test_analyze_of_an_options_file_equals_that_of_its_checkpoint(capsys, tmp_path, files):
    _, by_options = analyzed(capsys, tmp_path, '-opt', files['train'], '--size', '3x24x16')
    _, by_checkpoint = analyzed(capsys, tmp_path, '--model', files['net'], '--size', '3x24x16')
    assert by_options == by_checkpoint


def test_analyze_of_a_dense_checkpoint(capsys, tmp_path, files):
    argv = ('--model', files['dense'], '--arch', files['arch'], '--size', '3x24x16')
    _, report = analyzed(capsys, tmp_path, *argv)
    assert report['candidates'] == []
    assert report['macs_dense'] == classpruning('EDSR').macs(24, 16).dense


@pytest.mark.parametrize('name', NETWORKS)
def test_analyze_of_every_network(capsys, tmp_path, name):
    path = write_yaml(tmp_path / 'net.yml', {'network_g': network_g(name)})
    out, report = analyzed(capsys, tmp_path, '-opt', path, '--size', '3x16x16')
    assert report['macs'] == sorted(report['macs'])
    assert report['macs'][-1] == report['macs_dense']
    assert ('routes whole tiles, as ' in out) == bool(report['no_patches_because'])
    inside = sum(layer['dense'] for layer in report['layers'])
    assert ('not in layers' in out) == (inside != report['macs_dense'])


# --------------------------------------------------------------------- as a process


def test_the_module_is_the_command(files):
    done = run_python('-m', 'basicsr_classpruning', 'analyze', '--model', files['net'], '--size', '1x8x8')
    assert done.returncode == 2
    assert done.stderr == 'classpruning: error: --size 1x8x8: this network takes 3 channel(s)\n'
    assert done.stdout == ''


def test_help_and_version(capsys):
    for argv in (['--help'], ['analyze', '--help'], ['train', '--help'], ['test', '--help'], ['--version']):
        with pytest.raises(SystemExit) as exited:
            main(argv)
        assert exited.value.code == 0
        assert capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'classpruning {__version__}\n'
