"""Animations: frames as a viewer shows them, and how they follow each other, read and written."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.reading import open_picture, read_picture
from basicsr_classpruning.images.writing import Rows, result_encoding, write_pictures

CASES = Path(__file__).parents[2] / 'shared' / 'cases'
DURATIONS = [40, 70, 400]


def frames(count=3, channels=3, height=40, width=56):
    """Smooth pictures that differ in a part only, so that encoders store parts."""
    rng = np.random.default_rng(0)
    base = cv2.GaussianBlur(rng.integers(0, 256, (height, width, channels), dtype=np.uint8), (7, 7), 2)
    result = [base.copy() for _ in range(count)]
    for index, frame in enumerate(result):
        frame[8 : 20 + index, 10 * index : 10 * index + 15] = (index * 60, 200, 30, 255)[:channels]
    return result


def save(path, pictures, **options):
    first, *others = [Image.fromarray(picture) for picture in pictures]
    first.save(path, save_all=True, append_images=others, **options)


def shown(path, mode):
    with Image.open(path) as image:
        return [np.asarray(frame.convert(mode)) for frame in ImageSequence.Iterator(image)]


def rewrite(source, target):
    """Reads all frames of a file and writes them as the results of a restoration are written."""
    with open_picture(source) as file:
        pictures = []
        for picture in file.pictures():
            pixels = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
            cuts = np.array_split(pixels, 3)
            pictures.append(Rows(result_encoding(picture.encoding), *pixels.shape[:2], cuts))
        write_pictures(target, pictures, file.animation(), 10**4)
        return file.animation()


@pytest.mark.parametrize('suffix', ['png', 'webp'])
@pytest.mark.parametrize('channels', [3, 4])
def test_lossless_animations_stay_what_they_were(tmp_path, suffix, channels):
    options = {'lossless': True, 'exact': True} if suffix == 'webp' else {}
    save(tmp_path / f'x.{suffix}', frames(channels=channels), duration=DURATIONS, loop=5, **options)
    animation = rewrite(tmp_path / f'x.{suffix}', tmp_path / f'y.{suffix}')
    assert animation.durations == tuple(DURATIONS)
    assert animation.plays == 5
    wanted, found = (shown(tmp_path / f'{name}.{suffix}', 'RGBA') for name in 'xy')
    np.testing.assert_array_equal(found, wanted)
    with Image.open(tmp_path / f'y.{suffix}') as image:
        assert image.n_frames == 3
        assert image.info['loop'] == 5
        times = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            times.append(frame.info['duration'])
    assert times == DURATIONS
    data = (tmp_path / f'y.{suffix}').read_bytes()
    assert b'VP8 ' not in data
    assert data.count(b'fcTL') == 3 * (suffix == 'png')


def test_grey_animations_stay_grey(tmp_path):
    save(tmp_path / 'x.png', [frame[..., 0] for frame in frames()], duration=DURATIONS)
    rewrite(tmp_path / 'x.png', tmp_path / 'y.png')
    with Image.open(tmp_path / 'y.png') as image:
        assert image.mode == 'L'
    np.testing.assert_array_equal(shown(tmp_path / 'y.png', 'L'), [frame[..., 0] for frame in frames()])


@pytest.mark.parametrize('disposal', [0, 1, 2])
@pytest.mark.parametrize('blend', [0, 1])
def test_frames_of_png_are_composed(tmp_path, disposal, blend):
    pictures = frames(channels=4)
    for index, picture in enumerate(pictures):
        picture[:, 30 + index :, 3] = 90
    save(tmp_path / 'x.png', pictures, duration=50, disposal=disposal, blend=blend)
    with open_picture(tmp_path / 'x.png') as file:
        found = [np.dstack([picture.pixels, picture.alpha]) for picture in file.pictures()]
    np.testing.assert_array_equal(found, shown(tmp_path / 'x.png', 'RGBA'))


@pytest.mark.parametrize('disposal', [1, 2, 3])
def test_gif_becomes_an_animated_png(tmp_path, disposal):
    save(tmp_path / 'x.gif', frames(), duration=DURATIONS, loop=0, disposal=disposal)
    animation = rewrite(tmp_path / 'x.gif', tmp_path / 'y.png')
    assert animation.plays == 0
    assert animation.durations == tuple(DURATIONS)
    np.testing.assert_array_equal(shown(tmp_path / 'y.png', 'RGB'), shown(tmp_path / 'x.gif', 'RGB'))
    with Image.open(tmp_path / 'y.png') as image:
        assert (image.format, image.mode, image.n_frames, image.info['loop']) == ('PNG', 'RGB', 3, 0)


def test_transparent_gifs_stay_transparent(tmp_path):
    first = Image.fromarray(frames()[0]).quantize(15)
    pictures = []
    for index in range(3):
        picture = first.copy()
        picture.paste(15, (5 * index, 0, 5 * index + 9, 30))
        pictures.append(picture)
    pictures[0].save(
        tmp_path / 'x.gif', save_all=True, append_images=pictures[1:], transparency=15, disposal=2, duration=20
    )
    assert rewrite(tmp_path / 'x.gif', tmp_path / 'y.png').plays == 1
    wanted, found = shown(tmp_path / 'x.gif', 'RGBA'), shown(tmp_path / 'y.png', 'RGBA')
    np.testing.assert_array_equal(found, wanted)
    assert {value for picture in found for value in np.unique(picture[..., 3])} == {0, 255}


def test_repetitions_of_a_gif_are_plays_of_a_png(tmp_path):
    save(tmp_path / 'x.gif', frames(), duration=20, loop=2)  # three times in all
    rewrite(tmp_path / 'x.gif', tmp_path / 'y.png')
    with Image.open(tmp_path / 'y.png') as image:
        assert image.info['loop'] == 3


def test_a_default_image_that_is_no_frame_stays_so(tmp_path):
    save(tmp_path / 'x.png', frames(4), duration=[10, 20, 30], default_image=True)
    animation = rewrite(tmp_path / 'x.png', tmp_path / 'y.png')
    assert animation.default_image
    assert animation.durations == (10, 20, 30)
    with Image.open(tmp_path / 'y.png') as image:
        assert image.default_image
        assert image.n_frames == 4
    np.testing.assert_array_equal(shown(tmp_path / 'y.png', 'RGB'), frames(4))


def test_lossy_animations_stay_lossy(tmp_path):
    save(tmp_path / 'x.webp', frames(), duration=40, quality=80)
    rewrite(tmp_path / 'x.webp', tmp_path / 'y.webp')
    assert b'VP8 ' in (tmp_path / 'y.webp').read_bytes()
    difference = np.abs(np.array(shown(tmp_path / 'y.webp', 'RGB'), int) - shown(tmp_path / 'x.webp', 'RGB'))
    assert difference.mean() < 4


def test_odd_durations_are_kept(tmp_path):
    save(tmp_path / 'x.png', frames(), duration=[1000 / 30, 1001 / 24, 90_000])
    rewrite(tmp_path / 'x.png', tmp_path / 'y.png')
    with open_picture(tmp_path / 'x.png') as before, open_picture(tmp_path / 'y.png') as after:
        assert after.animation().durations == pytest.approx(before.animation().durations, rel=1e-3)


def test_only_the_first_frame_is_read_where_no_more_is_wanted(tmp_path):
    save(tmp_path / 'x.gif', frames(), duration=20)
    np.testing.assert_array_equal(read_picture(tmp_path / 'x.gif').pixels, shown(tmp_path / 'x.gif', 'RGB')[0])


def test_what_is_not_read_is_said(tmp_path):
    save(tmp_path / 'x.mpo', frames(2), format='MPO', quality=90)
    (tmp_path / 'x.jpg').write_bytes((tmp_path / 'x.mpo').read_bytes())
    with open_picture(tmp_path / 'x.jpg') as file:
        assert len(file) == 1
        assert file.note == 'only the first of its 2 pictures is read'
        assert file.animation() is None
        assert len(list(file.pictures())) == 1


@pytest.mark.parametrize('suffix', ['png', 'webp', 'gif'])
def test_damaged_animations_are_one_error(tmp_path, suffix):
    path = tmp_path / f'x.{suffix}'
    save(path, frames(), duration=DURATIONS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(80):
        data = bytearray(whole[: rng.integers(1, len(whole))] if number % 2 else whole)
        for position in rng.integers(0, len(data), rng.integers(1, 5)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        message = error_of(path)
        assert message is None or (f'{path.name}: ' in message and '\n' not in message)


def error_of(path):
    try:
        with open_picture(path, 10**6) as file:
            list(file.pictures())
    except UserError as error:
        return str(error)
    return None


@pytest.mark.skipif(not CASES.is_dir(), reason='the sample files are not on this machine')
@pytest.mark.parametrize('name', ['anim.png', 'anim.webp'])
def test_sample_files(tmp_path, name):
    rewrite(CASES / name, tmp_path / name)
    np.testing.assert_array_equal(shown(tmp_path / name, 'RGBA'), shown(CASES / name, 'RGBA'))


def test_a_later_frame_that_claims_too_many_pixels_is_one_line(tmp_path):
    save(tmp_path / 'x.gif', frames(2))
    content = bytearray((tmp_path / 'x.gif').read_bytes())
    (second,) = [
        place
        for place in range(1, len(content) - 10)
        if content[place - 1 : place + 1] == b'\0,' and place > len(content) // 2
    ][-1:]
    content[second + 5 : second + 9] = struct.pack('<HH', 64_000, 64_000)
    (tmp_path / 'x.gif').write_bytes(content)
    with pytest.raises(UserError, match=r'x\.gif: cannot be read as a picture \(Image size \(4\d+ pixels\) exceeds'):
        list(open_pictures(tmp_path / 'x.gif'))


def open_pictures(path):
    with open_picture(path) as file:
        yield from file.pictures()
