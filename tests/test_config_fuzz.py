"""Whatever an options file holds: it is valid, or it is refused with one line."""

import copy
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny import REPOSITORY

import basicsr_classpruning  # noqa: F401  # registers the networks, losses and models
from basicsr_classpruning.config import load_network_options, load_options, validate
from basicsr_classpruning.config.yaml_reader import MAX_BYTES, read_yaml
from basicsr_classpruning.errors import UsageError
from tools.reliability.changes import containers

FILES = sorted((REPOSITORY / 'options').glob('*/*.yml'))
OPTIONS = [read_yaml(str(path)) for path in FILES]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(['2:4', '16:16', 'EDSR', 'ClassPruning', 'SRModel', 'auto', 1e-4, 10**30, -1, 0, '(', '\n', '[x'])
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner)
)


def mutate(opt, data):
    """Removes, renames, replaces or moves something."""
    place = data.draw(st.sampled_from(list(containers(opt))))
    key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    action = data.draw(st.sampled_from(['remove', 'replace', 'add', 'copy']))
    if action == 'remove':
        del place[key]
    elif action == 'replace':
        place[key] = data.draw(values)
    elif action == 'copy':
        place[key] = copy.deepcopy(data.draw(st.sampled_from(list(containers(opt)))))
    elif isinstance(place, dict):
        place[data.draw(st.text(max_size=8) | st.integers() | st.none())] = data.draw(values)


def check(function, *args):
    """Runs the function: it succeeds or raises UsageError with one line."""
    message = ''
    try:
        function(*args)
    except UsageError as error:
        message = str(error)
    assert message.isprintable()  # so it is one line, too


@settings(max_examples=150, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_mutated_options(data):
    opt = copy.deepcopy(data.draw(st.sampled_from(OPTIONS)))
    opt['model_type'] = data.draw(st.sampled_from([opt['model_type'], opt['model_type'], 'SRModel', 'SRGANModel']))
    for _ in range(data.draw(st.integers(1, 4))):
        if opt:
            mutate(opt, data)
    opt.pop('custom_imports', None)  # importing is the user's wish; nothing to be tried at random
    check(validate, opt, 'FILE.yml')


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(values)
def test_any_value(opt):
    if isinstance(opt, dict):
        opt.pop('custom_imports', None)
    check(validate, opt, 'FILE.yml')


@pytest.mark.parametrize('seed', range(60))
def test_damaged_files(tmp_path, seed):
    rng = random.Random(seed)
    content = bytearray(rng.choice(FILES).read_bytes())
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.randint(0, 12))
        junk = bytes(rng.choice(b'\0\t\n\r {}[]:,&*!|>%@`"\'#-?\xff\xe2a0.') for _ in range(rng.randint(0, 12)))
        content[start:end] = junk
    path = tmp_path / 'damaged.yml'
    path.write_bytes(bytes(content))
    check(load_options, str(path))
    check(load_network_options, str(path))


@pytest.mark.parametrize(
    'text', ['? ', '- ', '[', '{a: ', '&a ', '*', '!', '"', '\n', ': ', 'a: b\n', '[a,b],', '%TAG ! x\n', '| ', '#']
)
def test_repetitive_files(tmp_path, text):
    path = tmp_path / 'long.yml'
    path.write_text(text * (MAX_BYTES // len(text)))
    check(load_options, str(path))
