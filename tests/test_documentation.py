"""The README and the documentation: every block of code in them is run, or says why not and is checked.

Blocks of one page run in their order, in one folder that holds what the page's reader would have, only smaller.

* ``bash``: each command must succeed. `classpruning` runs in this process, all else in a shell.
* ``python``: is executed; with ``title="FILE"`` it is written to that file instead.
* ``yaml``: options, whole or in part, checked by the schema; with ``title="FILE"`` they are written, too.

A comment ``<!-- not run: REASON -->`` above a block leaves it out: then its commands, their options and the files that
they name must exist.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from tiny import REPOSITORY, randomise, write_yaml

from basicsr_classpruning.archs.adapters import _adapters
from basicsr_classpruning.benchmark.rivals import RIVALS
from basicsr_classpruning.cli import build_parser, main
from basicsr_classpruning.config import load_options
from basicsr_classpruning.config.loading import build_parser as pipeline_parser
from basicsr_classpruning.data.degradations.base import _registered
from basicsr_classpruning.data.demo import make_demo_data
from basicsr_classpruning.inference.engines import _MAKERS
from basicsr_classpruning.pruning import prune
from basicsr_classpruning.routing.ladder import _KINDS
from basicsr_classpruning.safe_files import save_file

PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
FENCE = re.compile(
    r'(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?[^\n]*\n'
    r'(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
SIDES = {'train': 200, 'test': 96}  # pixels; calibration needs crops of 192 for a network that doubles the size
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 1, 'upscale': 2}


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    title: str | None
    reason: str | None
    """Why it is not run; None where it is."""
    code: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding='utf-8')
    name = str(page.relative_to(REPOSITORY))
    return [
        Block(name, text.count('\n', 0, m.start('code')), m['language'], m['title'], m['reason'], m['code'])
        for m in FENCE.finditer(text)
    ]


def commands(code: str) -> list[list[str]]:
    """The words of each command, comments left out."""
    lines = code.replace('\\\n', ' ').splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


# ------------------------------------------------------------------------------------ what a reader has


@pytest.fixture(scope='module')
def reader(tmp_path_factory) -> Path:
    """A folder with a dense checkpoint, its options, photographs, the example options, all small."""
    import torch
    from basicsr.archs import build_network

    root = tmp_path_factory.mktemp('reader')
    photographs = make_demo_data(root / 'full')
    places = {
        photographs.train: ('datasets/demo/train', 'my_photographs'),
        photographs.test: ('datasets/demo/test', 'photographs', 'clean'),
    }
    for folder, targets in places.items():
        for target in targets:
            (root / target).mkdir(parents=True)
            for path in folder.glob('*.png'):
                part = cv2.imread(str(path))[: SIDES[folder.name], 100 : 100 + SIDES[folder.name]]
                cv2.imwrite(str(root / target / path.name), part)
    shutil.copy(root / 'photographs/chelsea.png', root / 'photo.png')
    torch.manual_seed(0)
    torch.save({'params': randomise(build_network(dict(EDSR))).state_dict()}, root / 'my_dense_checkpoint.pth')
    write_yaml(root / 'my_options.yml', {'network_g': EDSR})
    net = build_network({'type': 'ClassPruning', 'base': dict(EDSR), 'candidates': ['4:16', '8:16', '16:16']})
    save_file({'params': net.state_dict(), 'network_g': net.options}, root / 'pruned.pth')
    shutil.copytree(REPOSITORY / 'zoo', root / 'zoo')
    # The examples as they are, but for their lengths.
    shutil.copytree(REPOSITORY / 'options', root / 'options')
    for path in (root / 'options/train').glob('demo*.yml'):
        opt = yaml.safe_load(path.read_text())
        train = opt['train']
        train.update({'stages': dict.fromkeys(train['stages'], 2)} if 'stages' in train else {'total_iter': 4})
        opt['datasets']['train'].update(num_worker_per_gpu=0, gt_size=32)
        opt['logger']['print_freq'] = 1
        opt['val']['val_freq'] = 4
        write_yaml(path, opt)
    return root


# --------------------------------------------------------------------------------------------- running


def run(block: Block, folder: Path, names: dict[str, object]) -> None:
    if block.language == 'bash':
        for words in commands(block.code):
            run_command(block, words)
    elif block.language == 'yaml':
        check_options(block, folder)
    elif block.title is None:
        exec(compile(block.code, f'{block.page}:{block.line}', 'exec'), names)
    if block.title is not None:
        (folder / block.title).parent.mkdir(exist_ok=True)
        (folder / block.title).write_text(block.code)


def run_command(block: Block, words: list[str]) -> None:
    if words[0] == 'classpruning':
        status = main(words[1:])
    else:
        status = subprocess.run(['bash', '-ec', shlex.join(words)], timeout=60, check=False).returncode
    assert status == 0, f'{block.page}, line {block.line}: {shlex.join(words)} ended with {status}'


def check_options(block: Block, folder: Path) -> None:
    """Options in part are put into an example file."""
    part = yaml.safe_load(block.code)
    opt = yaml.safe_load((REPOSITORY / 'options/train/edsr_x2.yml').read_text())
    for key, value in part.items():
        merged = isinstance(value, dict) and key in ('train', 'path', 'val', 'logger')
        opt[key] = {**opt[key], **value} if merged else value
    if 'train' in part or 'network_g' in part:
        opt['train'].pop('total_iter', None)
        opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [10]}
    load_options(write_yaml(folder / 'checked.yml', opt if block.title is None else part))


@pytest.fixture(autouse=True)
def registries_as_they_were() -> Iterator[None]:
    """What a page registers is gone after it: other tests ask for what this package has."""
    known: list[Any] = [RIVALS, _registered, _adapters, _MAKERS, _KINDS]
    before = [registry.copy() for registry in known]
    yield
    for registry, kept in zip(known, before):
        registry.clear()
        (registry.extend if isinstance(registry, list) else registry.update)(kept)


@pytest.fixture
def short(monkeypatch):
    """Calibration on fewer crops, the classifier fitted in fewer steps."""
    for name, value in (('_ERROR_CROPS', (8, 8)), ('_FIT_STEPS', 10), ('_HELD_OUT', 2), ('_WEIGHT_CROPS', (4, 4))):
        monkeypatch.setattr(prune, name, value)


@pytest.mark.usefixtures('short')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_blocks_run(page, reader, monkeypatch, tmp_path):
    monkeypatch.chdir(reader)
    monkeypatch.syspath_prepend(str(reader))
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}:{REPOSITORY}', prepend=':')
    names: dict[str, object] = {'__name__': 'documentation'}
    for block in blocks_of(page):
        if block.reason is None and block.language in ('bash', 'python', 'yaml'):
            run(block, reader, names)


# -------------------------------------------------------------------------------------- what is not run

ALL = [block for page in PAGES for block in blocks_of(page)]


@pytest.mark.parametrize('block', ALL, ids=lambda block: f'{block.page}:{block.line}')
def test_every_block_is_of_a_kind_that_is_checked(block):
    assert block.language in ('bash', 'python', 'yaml', 'text'), 'name its language; text is for what is no code'


@pytest.mark.parametrize(
    'block', [block for block in ALL if block.reason is not None], ids=lambda block: f'{block.page}:{block.line}'
)
def test_blocks_that_are_not_run_are_right(block):
    assert len(block.reason) > 10
    if block.language == 'python':
        ast.parse(block.code)
    for words in commands(block.code) if block.language == 'bash' else ():
        check_command(words)


def check_command(words: list[str]) -> None:
    """Fails where a command, one of its options or a file of the repository that it names does not exist."""
    while '=' in words[0]:  # variables of the environment
        words = words[1:]
    name = Path(words[0]).name
    if name == 'make':
        targets = re.findall(r'^([\w.$()/-]+):', (REPOSITORY / 'Makefile').read_text(), re.MULTILINE)
        targets += ['.venv/.installed']
        assert {word for word in words[1:] if '=' not in word} <= set(targets)
    elif name == 'classpruning':
        parser = pipeline_parser(words[1] == 'train') if words[1] in ('train', 'test') else build_parser()
        parser.parse_args(words[2:] if words[1] in ('train', 'test') else words[1:])
    elif name.startswith('python') and words[1:2] == ['-m'] and words[2].startswith('tools'):
        check_tool(words[2:])
    elif name.startswith('python') and words[1:2] != ['-m']:
        check_script(words[1:])
    elif (REPOSITORY / words[0]).is_file():
        check_script(words)
    elif name not in ('pip', 'source', 'cd', 'git', 'tensorboard', 'python', 'ruff', 'apt-get', 'torchrun'):
        assert shutil.which(words[0]), f'{words[0]}: no such command'


def check_script(words: list[str]) -> None:
    """A script of the repository, and the options that it is given stand in it."""
    script = REPOSITORY / words[0]
    assert script.is_file(), f'{words[0]}: no such file'
    text = script.read_text(encoding='utf-8')
    for option in (word.partition('=')[0] for word in words[1:] if word.startswith('--') and word != '--help'):
        assert option in text, f'{words[0]} takes no {option}'


def check_tool(words: list[str]) -> None:
    """A module of tools, and what it is called with stands in it."""
    module = REPOSITORY / words[0].replace('.', '/')
    script = module / '__main__.py' if module.is_dir() else module.with_suffix('.py')
    assert script.is_file(), f'{words[0]}: no such module'
    text = script.read_text(encoding='utf-8')
    for word in words[1:]:
        assert word.partition('=')[0] in text, f'{words[0]} takes no {word}'


def test_commands_in_the_text_exist():
    """Commands between back quotes, with what they are called with."""
    for page in PAGES:
        if page.name == 'options.md':  # generated; its commands have placeholders
            continue
        text = FENCE.sub('', page.read_text(encoding='utf-8'))
        for call in re.findall(r'`((?:make [a-z]|(?:\.venv/bin/)?python (?:tools/|-m tools\.))[^`]*)`', text):
            check_command(shlex.split(call))


def test_the_checks_can_fail(tmp_path):
    page = tmp_path / 'x.md'
    for words in (['make', 'coffee'], ['python', 'tools/none.py'], ['python', 'tools/demo.py', '--none'],
                  ['python', '-m', 'tools.none'], ['python', '-m', 'tools.pages', 'coffee'],
                  ['no_such_command']):  # fmt: skip
        with pytest.raises(AssertionError):
            check_command(words)
    with pytest.raises(Exception, match='--none'):
        check_command(['classpruning', 'restore', 'x', '--model', 'y', '--output', 'z', '--none'])
    page.write_text('<!-- not run: takes long -->\n```bash\na \\\n  b  # c\n```\n```python title="x.py"\nx\n```\n')
    text = page.read_text()
    first, second = FENCE.finditer(text)
    assert first['reason'] == 'takes long'
    assert commands(first['code']) == [['a', 'b']]
    assert (second['reason'], second['title'], second['code']) == (None, 'x.py', 'x\n')
    with pytest.raises(AssertionError, match='ended with 3'):
        run_command(Block('x', 1, 'bash', None, None, ''), ['exit', '3'])
