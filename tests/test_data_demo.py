"""The demo's photographs: complete, the same every time, kept where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from PIL import Image

from basicsr_classpruning.data import demo
from basicsr_classpruning.errors import UserError


def test_photographs_are_written_once_and_apart(tmp_path):
    data = demo.make_demo_data(tmp_path / 'new' / 'demo')
    train, test = (sorted(path.name for path in folder.iterdir()) for folder in (data.train, data.test))
    assert (len(train), len(test)) == (6, 3)
    assert not set(train) & set(test)
    for folder in (data.train, data.test):
        for path in folder.iterdir():
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert picture.shape[2] == 3
            assert min(picture.shape[:2]) > 200
    content = (data.test / 'chelsea.png').read_bytes()
    (data.test / 'chelsea.png').write_bytes(b'kept')
    (data.test / 'rocket.png').unlink()
    again = demo.make_demo_data(tmp_path / 'new' / 'demo')
    assert again == data
    assert (data.test / 'chelsea.png').read_bytes() == b'kept'
    assert (data.test / 'rocket.png').is_file()
    (data.test / 'chelsea.png').unlink()
    demo.make_demo_data(tmp_path / 'new' / 'demo')
    assert (data.test / 'chelsea.png').read_bytes() == content


def test_colours_are_those_of_scikit_image(tmp_path):
    expected = np.asarray(Image.open(Path(skimage.__file__).parent / 'data' / 'astronaut.png'))
    written = cv2.imread(str(demo.make_demo_data(tmp_path).train / 'astronaut.png'))[..., ::-1]
    np.testing.assert_array_equal(written, expected)


def test_a_missing_photograph_is_named_and_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'TEST_PHOTOGRAPHS', ('mars.png',))
    with pytest.raises(UserError, match=r'mars\.png'):
        demo.make_demo_data(tmp_path)
    assert list((tmp_path / 'test').iterdir()) == []


def test_other_pictures_are_none_of_the_photographs(tmp_path):
    folder = demo.make_other_pictures(tmp_path / 'other')
    assert len(list(folder.glob('*.png'))) == len(demo.OTHER_PICTURES)
    assert not set(demo.OTHER_PICTURES) & {*demo.TRAIN_PHOTOGRAPHS, *demo.TEST_PHOTOGRAPHS}
