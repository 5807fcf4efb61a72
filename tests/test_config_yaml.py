"""YAML from strangers: plain values only, and one line that names the file and the line for everything else."""

import pytest

from basicsr_classpruning.config.problems import Problem
from basicsr_classpruning.config.yaml_reader import MAX_BYTES, parse_value, read_yaml
from basicsr_classpruning.errors import UsageError


def read(tmp_path, text):
    path = tmp_path / 'options.yml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(str(path))


def refused(tmp_path, text):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(str(tmp_path / 'options.yml'))
    return message.removeprefix(str(tmp_path / 'options.yml: '))


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-4', 1e-4),
        ('!!float 5e3', 5000.0),
        ('2.0E-4', 2e-4),
        ('-1', -1),
        ('010', 10),
        ('0x10', 16),
        ('500_000', 500000),
        ('2:4', '2:4'),
        ('2024-01-01', '2024-01-01'),
        ('~', None),
        ('', None),
        ('true', True),
        ('no', False),
        ("'1'", '1'),
        ('[1:4, 2:4, 4:4]', ['1:4', '2:4', '4:4']),
        ('{a: [1, b]}', {'a': [1, 'b']}),
        ('!!str 12', '12'),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_aliases_are_copies_and_merges_keep_the_own_value(tmp_path):
    opt = read(tmp_path, 'a: &x {lr: 1, betas: [0, 1]}\nb: *x\nc: {<<: *x, lr: 2}\n')
    assert opt == {'a': {'lr': 1, 'betas': [0, 1]}, 'b': {'lr': 1, 'betas': [0, 1]}, 'c': {'lr': 2, 'betas': [0, 1]}}
    opt['a'].pop('lr')
    assert 'lr' in opt['b']


@pytest.mark.parametrize(
    'text',
    [
        'a: 1\nb: !!python/object/apply:os.system ["true"]\n',
        'a: 1\nb: !!python/name:os.system\n',
        'a: 1\nb: !!python/tuple [1, 2]\n',
        'a: 1\nb: !own {c: 1}\n',
        'a: 1\nb: !!binary aGk=\n',
        'a: 1\nb: !!set {c, d}\n',
        'a: 1\nb: !!timestamp 2001-12-14\n',
    ],
)
def test_tags_are_refused(tmp_path, text):
    message = refused(tmp_path, text)
    assert message.startswith('line 2: the tag ')
    assert 'not allowed' in message


def test_tagged_keys_are_refused(tmp_path):
    assert refused(tmp_path, '!!python/name:os.system : 1\n').startswith('line 1: a key is plain text')
    assert refused(tmp_path, '[1, 2]: 1\n').startswith('line 1: a key is plain text')


def test_duplicate_key(tmp_path):
    assert refused(tmp_path, 'a: 1\nb:\n  c: 1\n  c: 2\n') == "line 4: the key 'c' is there twice"


@pytest.mark.parametrize('text', ['a: [1, 2\nb: 3\n', 'a: 1\n b: 2\n', 'a: *nothing\n', '\tname: x\n', 'a: "x\n', '%'])
def test_syntax_errors_name_the_line(tmp_path, text):
    assert refused(tmp_path, text).startswith('line ')


def test_several_documents(tmp_path):
    assert refused(tmp_path, 'a: 1\n---\nb: 2\n').startswith('line 2: is not YAML')


def test_alias_bomb(tmp_path):
    rows = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    rows += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]
    assert 'aliases' in refused(tmp_path, '\n'.join(rows))
    assert 'aliases' in refused(tmp_path, 'a: &a [*a]\n')


def test_depth_and_size(tmp_path):
    assert 'levels deep' in refused(tmp_path, '[' * 5000)
    assert 'levels deep' in refused(tmp_path, '- ' * 5000 + 'x')
    assert 'larger than' in refused(tmp_path, '#' * (MAX_BYTES + 1))


def test_numbers_too_long_for_python(tmp_path):
    assert refused(tmp_path, f'a: {"9" * 5000}\n').startswith('line 1: ')
    assert refused(tmp_path, 'a: !!int x\n').startswith("line 1: 'x' is not a value of type int")


def test_not_text(tmp_path):
    assert refused(tmp_path, b'\xff\xfe\x00\x01') == 'is not UTF-8 text; an options file in YAML'
    assert refused(tmp_path, 'a: \x07\n').startswith('is not YAML')


def test_no_file(tmp_path):
    for path in (tmp_path / 'none.yml', tmp_path):
        with pytest.raises(UsageError, match='no such file'):
            read_yaml(str(path))
    with pytest.raises(UsageError):
        read_yaml('a\0b')


def test_byte_order_mark(tmp_path):
    assert read(tmp_path, b'\xef\xbb\xbfa: 1\n') == {'a': 1}


def test_value_errors_are_problems():
    with pytest.raises(Problem):
        parse_value('[')
