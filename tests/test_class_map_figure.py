"""The script that makes the README's picture of a class map."""

from __future__ import annotations

import pytest
from PIL import Image
from tiny import classpruning

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.safe_files import save_file
from tools import class_map_figure


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, writing into a folder of the test's."""
    monkeypatch.setattr(class_map_figure, 'FIGURE', tmp_path / 'figures' / 'class_map.jpg')
    return class_map_figure


@pytest.fixture
def checkpoint(tmp_path):
    net = classpruning('EDSR')
    save_file({'params': net.state_dict(), 'network_g': net.options}, tmp_path / 'net.pth')
    return str(tmp_path / 'net.pth')


def test_the_figure_shows_input_and_output(script, checkpoint, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', checkpoint, '--budget', '0.7'])
    script.main()
    with Image.open(script.FIGURE) as picture:
        assert picture.size[0] == 3 * script.WIDTH + 2 * script.GAP
        input_, output = (picture.crop((left, 0, left + script.WIDTH, 200)) for left in (0, 2 * (script.WIDTH + 8)))
        assert input_.tobytes() != output.tobytes()


def test_a_degradation_of_another_scale(script, checkpoint, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', checkpoint, '--degrade', 'noise25-25'])
    with pytest.raises(UserError, match='enlarges 2 times'):
        script.main()


def test_a_photograph_that_is_not_there(script, checkpoint, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', checkpoint, '--photograph', 'mona_lisa'])
    with pytest.raises(UserError, match='mona_lisa'):
        script.main()
