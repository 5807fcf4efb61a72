"""The harnesses of tools/reliability in their short form."""

from __future__ import annotations

import json

import pytest
from tiny import run_python

from tools.reliability.points import POINTS


@pytest.mark.parametrize('point', POINTS)
def test_nothing_is_lost(tmp_path, point):
    done = run_python('tools/reliability/run.py', point, '--short', '--results', str(tmp_path), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads((tmp_path / f'{point}.json').read_text())
    assert result['tried'] == result['survived'] == sum(row['tried'] for row in result['rows']) > 0
    assert result['lost'] == 0


def test_a_harness_that_loses_something_fails(tmp_path):
    """Files are written in place, neither whole nor not at all: the harness must notice."""
    script = (
        'import os, sys, runpy\n'
        'import basicsr_classpruning\n'
        'from basicsr_classpruning import safe_files\n'
        'def careless(path, write):\n'
        '    with open(path, "wb") as file:\n'
        '        write(file)\n'
        'safe_files.write_atomically = careless\n'
        f'sys.argv = ["run.py", "disk", "--short", "--results", {str(tmp_path)!r}]\n'
        'runpy.run_path("tools/reliability/run.py", run_name="__main__")\n'
    )
    done = run_python('-c', script, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr[-3000:]
    result = tmp_path / 'disk.json'
    assert result.is_file(), done.stdout + done.stderr[-3000:]
    assert json.loads(result.read_text())['lost'] > 0
