"""What is generated in the documentation agrees with the results that are kept, and its figures are what they claim."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from tiny import REPOSITORY

from tools.benchmark_pruning import Network
from tools.pages import __main__ as command
from tools.pages import kernels, markdown, plot, pruning, speed


@pytest.fixture
def root(tmp_path):
    """A copy of the documentation."""
    shutil.copytree(REPOSITORY / 'docs', tmp_path / 'docs')
    shutil.copy(REPOSITORY / 'README.md', tmp_path)
    return tmp_path


# The JSON schema of the options depends on the version of pydantic: tests/test_config_reference.py.
@pytest.mark.parametrize('name', [name for name in command.PAGES if name != 'options'])
def test_pages_agree_with_the_results(name, root):
    files = [path for path in root.rglob('*') if path.is_file()]
    before = [path.read_bytes() for path in files]
    command.PAGES[name](root)
    changed = [str(path.relative_to(root)) for path, content in zip(files, before) if path.read_bytes() != content]
    assert not changed, f'run python -m tools.pages {name}'


@pytest.mark.parametrize('name', [name for name in command.PAGES if name not in ('options', 'plot')])
def test_what_was_typed_into_a_table_is_replaced(name, root):
    pages = [root / 'README.md', *(root / 'docs').rglob('*.md')]
    typed = [page.read_text().replace('| --- |', '| --- | typed |') for page in pages]
    for page, text in zip(pages, typed):
        page.write_text(text)
    command.PAGES[name](root)
    assert any(page.read_text().count('typed') < text.count('typed') for page, text in zip(pages, typed))


def test_a_page_without_a_place_for_a_table_is_refused(tmp_path):
    (tmp_path / 'page.md').write_text('<!-- one -->\nold\n<!-- end -->\n')
    markdown.write_blocks(tmp_path / 'page.md', {'one': 'n\\ew'})
    assert (tmp_path / 'page.md').read_text() == '<!-- one -->\nn\\ew\n<!-- end -->\n'
    with pytest.raises(ValueError, match='two'):
        markdown.write_blocks(tmp_path / 'page.md', {'two': 'new'})


def test_an_unknown_page_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['pages', 'kernels', 'coffee'])
    with pytest.raises(SystemExit):
        command.main()
    assert 'no such page: coffee' in capsys.readouterr().err


@pytest.mark.parametrize('folder', ['prune', 'routing'])
def test_results_name_no_path_of_a_machine(folder):
    for path in (REPOSITORY / 'docs/results' / folder).glob('*.json'):
        named = json.loads(path.read_text(encoding='utf-8'))['command']
        assert not any(part.startswith(('/', '~', '..')) for part in named.split())


def test_the_plot_is_drawn_anew_when_the_results_change(root):
    for path in (root / 'docs/results/photographs').glob('*_engines.json'):
        found = json.loads(path.read_text())
        for row in found['rows']:
            row['psnr_y'] += 1
        path.write_text(json.dumps(found))
    plot.write(root)
    drawn, kept = root / plot.FIGURE, REPOSITORY / plot.FIGURE
    assert drawn.read_bytes() != kept.read_bytes()
    assert plot.drawn_from(drawn) != plot.drawn_from(kept)


# ------------------------------------------------------------------------------------------- docs/pruning.md


def row(kind, psnr, macs, candidate=None, budget=None):
    return {'kind': kind, 'candidate': candidate, 'budget': budget, 'psnr': psnr, 'macs': macs, 'macs_dense': 100,
            'saved': 1 - macs / 100}  # fmt: skip


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setattr(pruning, 'NETWORKS', (Network('net', 'net', 'net', '', 'psnr'),))
    rows = [
        row('candidate', 28.0, 25, '4:16'), row('candidate', 29.0, 51, '8:16'), row('candidate', 30.0, 100, '16:16'),
        row('budget', 28.9, 50, budget=0.5), row('random', 28.8, 50, budget=0.5), row('oracle', 29.1, 50, budget=0.5),
    ]  # fmt: skip
    plain = [row('candidate', 20.0, 25, '4:16'), row('candidate', 25.0, 51, '8:16')]
    return {'net_BSD100': {'rows': rows}, 'net_magnitude_BSD100': {'rows': plain}}


def test_losses_are_below_the_dense_candidate(results):
    lines = pruning.losses(results).splitlines()
    assert lines[2] == '| net | BSD100 | 4:16 | 25.0% | 28.000 | 2.000 | 10.000 | 20.0% |'
    assert lines[3] == '| net | BSD100 | 8:16 | 51.0% | 29.000 | 1.000 | 5.000 | 20.0% |'


def test_the_best_fixed_candidate_is_within_the_budget(results):
    line = pruning.routed(results).splitlines()[2]
    assert line == '| net | BSD100 | 0.5 | 50.0% | 28.900 | 28.000 (4:16) | +0.900 | 28.800 | +0.100 | 29.100 |'


def test_means_are_against_the_fastest_engine_of_each_row_and_against_pytorch():
    rows = [
        {'threads': 1, 'seconds': {name: {'cpu': value, 'wall_min': 9.0} for name, value in seconds.items()}}
        for seconds in ({'eager': 2.0, 'ncnn': 1.0, 'kernels': 0.5}, {'eager': 3.0, 'ncnn': 4.0, 'kernels': 1.0})
    ]
    rivals = {'fastest': kernels.fastest_fp32, 'PyTorch': lambda seconds: 'eager'}
    lines = kernels.mean_table(rows, rivals, {'kernels': 'dense', 'absent': 'absent'}).splitlines()
    assert lines[0] == '| against | threads | dense |'
    assert lines[2:] == ['| fastest | 1 | 2.45× |', '| PyTorch | 1 | 3.46× |']  # roots of 2 · 3 and 4 · 3


def timed(threads=1, **fields):
    seconds = {name: {'cpu': value, 'wall_min': value / 2} for name, value in fields.pop('seconds').items()}
    return {'threads': threads, 'seconds': seconds, **fields}


def test_speed_targets_are_ranges_of_networks_and_means_of_layers():
    networks = [
        timed(network='EDSR 64x16 x2', seconds={'ncnn': 3.0, 'eager': 9.0, 'kernels': 2.0, '8:16 block 1': 1.0}),
        timed(network='DnCNN', seconds={'ncnn': 5.0, 'eager': 4.0, 'kernels': 2.0, '8:16 block 1': 1.0}),
        timed(2, network='NAFNet width 32', seconds={'eager': 3.0, 'kernels': 2.0, '8:16 block 1': 2.0}),
    ]
    layers = [
        timed(kernel_size=size, seconds={'eager': 1.0, 'kernels': value, '8:16 block 1': value, '4:16 block 1': value})
        for size, value in ((3, 0.5), (3, 0.125), (1, 0.1))
    ]
    lines = speed.table({'kernels_networks': {'rows': networks}, 'kernels_layers_avx2': {'rows': layers}}, None)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines.splitlines()]
    found = {what: reached for what, _, _, *reached in rows}
    assert found[speed.TARGETS[0].what] == ['1.50 to 2.50×', '', '']  # of the two that are named
    assert found['3 × 3 layers, dense, against PyTorch'][-1] == '4.00×'  # the root of 2 · 8
    assert found['NAFNet 32, 8:16, against the fastest fp32 engine'][1] == '1.50×'  # of the wall clocks
