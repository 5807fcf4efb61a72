"""The script that makes the README's figures."""

from __future__ import annotations

import importlib.util
import json

import pytest
from PIL import Image
from tiny import REPOSITORY, classpruning, write_pictures

from basicsr_classpruning.cli import main
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.safe_files import save_file


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, writing into a folder of the test's."""
    spec = importlib.util.spec_from_file_location('readme_figures', REPOSITORY / 'tools/readme_figures.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'FIGURES', tmp_path / 'figures')
    return module


@pytest.fixture
def checkpoint(tmp_path):
    net = classpruning('DnCNN')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    return str(tmp_path / 'net.pth')


def test_both_figures_are_made(script, checkpoint, tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / 'gt', count=2)
    arguments = ['--gt', str(pictures), '--degrade', 'noise25-25', '--threads', '1', '--repeats', '1']
    report = tmp_path / 'report.json'
    assert main(['benchmark', '--models', checkpoint, '--budgets', '0.7', *arguments, '--json', str(report)]) == 0
    figures = tmp_path / 'figures'
    monkeypatch.setattr('sys.argv', ['x', checkpoint, '--budget', '0.7', '--report', str(report)])
    script.main()
    with Image.open(figures / 'class_map.jpg') as picture:
        assert picture.size[0] == 3 * script.WIDTH + 2 * script.GAP
        input_, output = (picture.crop((left, 0, left + script.WIDTH, 200)) for left in (0, 2 * (script.WIDTH + 8)))
        assert input_.tobytes() != output.tobytes()
    first = (figures / 'psnr_time.png').read_bytes()

    found = json.loads(report.read_text())
    for row in found['rows']:
        row['psnr'] += 1
    report.write_text(json.dumps(found))
    script.main()
    assert (figures / 'psnr_time.png').read_bytes() != first


def test_a_photograph_that_is_not_there(script, checkpoint, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', checkpoint, '--photograph', 'mona_lisa'])
    with pytest.raises(UserError, match='mona_lisa'):
        script.main()
