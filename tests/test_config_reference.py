"""The generated reference and JSON schema are those of the schema that checks the options."""

import json

import pydantic
import pytest
from tiny import REPOSITORY

from basicsr_classpruning.config.fields import Section
from basicsr_classpruning.config.yaml_reader import read_yaml
from tools.pages import options


def _subclasses(section):
    for subclass in section.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def test_reference_is_up_to_date():
    text = (REPOSITORY / 'docs' / 'options.md').read_text(encoding='utf-8')
    assert text == options.reference(), f'run {options.COMMAND}'


def test_json_schema_is_up_to_date():
    written = json.loads((REPOSITORY / 'docs' / 'options.schema.json').read_text(encoding='utf-8'))
    version = '.'.join(pydantic.VERSION.split('.')[:2])
    if f'pydantic {version}.' not in written['$comment']:
        pytest.skip(f'written with another version of pydantic than {version}, which words the schema differently')
    assert written == json.loads(options.json_schema()), f'run {options.COMMAND}'


def test_json_schema_accepts_our_files_and_refuses_a_typo():
    jsonschema = pytest.importorskip('jsonschema')
    schema = json.loads((REPOSITORY / 'docs' / 'options.schema.json').read_text(encoding='utf-8'))
    validator = jsonschema.Draft202012Validator(schema)
    for path in (REPOSITORY / 'options').glob('*/*.yml'):
        opt = read_yaml(str(path))
        assert validator.is_valid(opt), path
        opt['network_g'] = {**opt['network_g'], 'type': 'ClassPruning', 'candidate': ['2:4']}
        assert not validator.is_valid({**opt, 'model_type': 'ClassPruningModel'}), path


def test_every_key_is_described_in_the_reference():
    shown = {name for table in options.TABLES for name in table.section.model_fields}
    for section in _subclasses(Section):
        for name, field in section.model_fields.items():
            assert field.description, f'{section.__name__}.{name}'
            assert name in shown, f'{section.__name__}.{name}'
