"""Imports point one way, those inside of functions too."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

from tiny import REPOSITORY

PACKAGE = 'basicsr_classpruning'
# From the ground up: a module imports from its own folder and from lines above its own.
LAYERS = (
    'errors version text_table progress examples once',
    'environment devices machine',
    'sparsity',
    'kernels sizes',
    'safe_files',
    'untrusted',
    'images',
    'checkpoint',
    'routing',
    'data',
    'archs',
    'losses',
    'pruning',
    'export',
    'inference',
    'benchmark',
    'config',
    'models',
    'loading preflight',
    'pipeline',
    '__init__',
    'cli',
    '__main__ train test',
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer.split()}
MODULES = {
    '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts).removesuffix('.__init__'): path
    for folder in (PACKAGE, 'tools', 'tests')
    for path in (REPOSITORY / folder).rglob('*.py')
}


def imported(path: Path) -> list[str]:
    """Modules of the repository that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: imports are absolute'
            whole = [f'{node.module}.{alias.name}' for alias in node.names]
            names += [name if name in MODULES else str(node.module) for name in whole]
    return [name for name in names if name in MODULES]


IMPORTS = {name: set(imported(path)) for name, path in MODULES.items()}


def part(module: str) -> str:
    """The file or folder of the package that holds a module."""
    _, name, *_ = (*module.split('.'), '__init__')
    return name


def allowed(module: str, other: str) -> bool:
    """Whether one module may import another one."""
    if module.startswith(PACKAGE):
        return other.startswith(PACKAGE) and (part(module) == part(other) or HEIGHT[part(other)] < HEIGHT[part(module)])
    # The harnesses are tests that take long, and use what tests use.
    return not other.startswith('tests') or module.startswith(('tests', 'tools.reliability.'))


def test_every_part_of_the_package_has_a_layer():
    assert set(HEIGHT) == {part(name) for name in MODULES if name.startswith(PACKAGE)}
    assert len(HEIGHT) == sum(len(layer.split()) for layer in LAYERS)


def test_imports_point_downwards():
    wrong = [f'{name} imports {other}' for name in MODULES for other in IMPORTS[name] if not allowed(name, other)]
    assert not wrong, '\n'.join(sorted(wrong))


def test_no_imports_go_in_circles():
    graphlib.TopologicalSorter({name: others - {name} for name, others in IMPORTS.items()}).prepare()


def test_what_is_not_allowed_is_seen(tmp_path):
    file = tmp_path / 'x.py'
    file.write_text('import torch\ndef f():\n    from basicsr_classpruning import cli, load\n    import tools.demo\n')
    assert imported(file) == [f'{PACKAGE}.cli', PACKAGE, 'tools.demo']
    assert not any(allowed(f'{PACKAGE}.sparsity.masks', other) for other in (f'{PACKAGE}.cli', PACKAGE, 'tools.demo'))
    assert allowed(f'{PACKAGE}.cli.fit', f'{PACKAGE}.sparsity.masks')
    assert allowed('tools.demo', f'{PACKAGE}.cli')
    assert not allowed('tools.demo', 'tests.tiny')
