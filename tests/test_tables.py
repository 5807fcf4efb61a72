"""The benchmark tables: their options files and their page agree with the plan and with the kept results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from basicsr_classpruning.config import load_options

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from benchmark_tables import instances, pages  # noqa: E402
from benchmark_tables.options import options_file, text  # noqa: E402

ROWS = [(table, row) for table in instances.TABLES for row in table.rows]
IDS = [f'{table.name}-{row.name}' for table, row in ROWS]


@pytest.mark.parametrize(('table', 'row'), ROWS, ids=IDS)
def test_options_file_is_what_the_plan_says_and_is_valid(table, row):
    path = ROOT / options_file(table, row)
    assert path.read_text(encoding='utf-8') == text(table, row)
    load_options(str(path))


@pytest.mark.parametrize('table', instances.TABLES, ids=lambda table: table.name)
def test_all_networks_are_trained_for_the_same_steps(table):
    def steps(row):
        before = steps(table.row(row.start)) if row.start else 0
        return before + sum(training.steps for training in row.trainings)

    assert {steps(row) for row in table.rows if row.name != 'start'} == {table.first.steps + table.further.steps}
    assert sum(table.stages.values()) == table.further.steps


def test_page_agrees_with_the_results(tmp_path, monkeypatch):
    (tmp_path / 'docs').mkdir()
    for page in (pages.PAGE, pages.README):
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.chdir(tmp_path)
    pages.write(ROOT / 'docs' / 'results' / 'tables')
    for page in (pages.PAGE, pages.README):
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()
