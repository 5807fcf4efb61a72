"""DegradedImageDataset: what a sample is, in training and validation, from a folder and from an LMDB."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from PIL import Image
from torch.utils.data import DataLoader

import basicsr_classpruning.data  # noqa: F401  # registers the data set
from basicsr_classpruning.data import degraded_image_dataset
from basicsr_classpruning.data.bicubic import bicubic_shrink
from basicsr_classpruning.data.degradations import as_float, as_uint8
from basicsr_classpruning.data.degraded_image_dataset import DegradedImageDataset
from basicsr_classpruning.data.pictures import PictureError, Pictures, list_lmdb_keys, list_pictures, read_picture
from basicsr_classpruning.errors import UsageError, UserError

NAMES = ('b', 'a', 'c.d')


def picture(seed: int, height: int = 60, width: int = 84) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8), (width, height))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('pictures')
    for seed, name in enumerate(NAMES):
        cv2.imwrite(str(root / f'{name}.png'), picture(seed))
    (root / 'notes.txt').write_text('no picture')
    return root


@pytest.fixture(scope='module')
def lmdb(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('lmdb') / 'pictures.lmdb'
    names = sorted(NAMES)
    make_lmdb_from_imgs(str(folder), str(root), [f'{name}.png' for name in names], names)
    return root


def options(root: Path, phase: str = 'train', **changes) -> dict:
    values = {
        'name': 'Pictures',
        'type': 'DegradedImageDataset',
        'dataroot_gt': str(root),
        'degradation': {'type': 'noise', 'sigma': [0, 50]},
        'phase': phase,
        'scale': 1,
    }
    if phase == 'train':
        values['gt_size'] = 24
    return {**values, **changes}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


def same(first: dict, second: dict) -> bool:
    return torch.equal(first['gt'], second['gt']) and torch.equal(first['lq'], second['lq'])


def test_built_from_basicsrs_registry(folder):
    dataset = build_dataset(options(folder))
    assert isinstance(dataset, DegradedImageDataset)
    assert len(dataset) == 3


@pytest.mark.parametrize(
    ('changes', 'channels', 'scale'),
    [
        ({}, 3, 1),
        ({'color': 'gray'}, 1, 1),
        ({'color': 'y', 'degradation': {'type': 'jpeg', 'quality': [10, 90]}}, 1, 1),
        ({'degradation': {'type': 'bicubic'}, 'scale': 4}, 3, 4),
        ({'degradation': {'type': 'bicubic'}, 'scale': 3, 'color': 'y', 'shrink': 2}, 1, 3),
        ({'degradation': {'type': 'jpeg', 'quality': [10, 90]}, 'shrink': 2}, 3, 1),
    ],
)
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_shapes_types_and_ranges(folder, phase, changes, channels, scale):
    dataset = DegradedImageDataset(options(folder, phase, **changes))
    for index in range(len(dataset)):
        sample = dataset[index]
        size = (24, 24)
        if phase == 'val':
            shrink = changes.get('shrink', 1)
            size = tuple(side // shrink // scale * scale for side in (60, 84))
        assert sample['gt'].shape == (channels, *size)
        assert sample['lq'].shape == (channels, size[0] // scale, size[1] // scale)
        assert sample['gt'].dtype == sample['lq'].dtype == torch.float32
        assert sample['gt'].min() >= 0
        assert sample['gt'].max() <= 1
        assert sample['lq_path'] == sample['gt_path'] == dataset.pictures.paths[index]


def test_validation_pictures_are_whole_rgb_and_in_order(folder):
    dataset = DegradedImageDataset(options(folder, 'val', degradation={'type': 'noise', 'sigma': [0, 0]}))
    for index, name in enumerate(sorted(NAMES)):
        expected = cv2.imread(str(folder / f'{name}.png'))[..., ::-1].transpose(2, 0, 1)
        sample = dataset[index]
        np.testing.assert_array_equal((sample['gt'] * 255).round().numpy(), expected)
        torch.testing.assert_close(sample['lq'], sample['gt'])
        assert Path(sample['gt_path']).stem == name


def test_super_resolution_pairs_fit_wherever_they_are_cut(folder):
    """Each training pair is found, at some place and flip, in the picture that was shrunk as a whole."""
    dataset = DegradedImageDataset(options(folder, scale=2, degradation={'type': 'bicubic'}, gt_size=16))
    picture = as_float(cv2.imread(str(folder / 'a.png'))[..., ::-1].copy())
    small = as_float(as_uint8(bicubic_shrink(picture, 2)))
    seed_all(0)
    for _ in range(20):
        sample = dataset[0]
        gt, lq = (sample[key].numpy().transpose(1, 2, 0) for key in ('gt', 'lq'))
        assert any(
            _found(np.rot90(gt, turns)[:, ::flip], np.rot90(lq, turns)[:, ::flip], picture, small)
            for turns in range(4)
            for flip in (1, -1)
        )


def _found(gt: np.ndarray, lq: np.ndarray, picture: np.ndarray, small: np.ndarray) -> bool:
    for top in range(0, picture.shape[0] - 16 + 1, 2):
        for left in range(0, picture.shape[1] - 16 + 1, 2):
            if np.array_equal(gt, picture[top : top + 16, left : left + 16]):
                expected = small[top // 2 : top // 2 + 8, left // 2 : left // 2 + 8]
                return bool(np.abs(lq - expected).max() < 1.01 / 255)
    return False


def test_shrunk_crops_come_from_the_picture_shrunk_as_a_whole(folder):
    changes = {'shrink': 2, 'use_hflip': False, 'use_rot': False, 'gt_size': 12}
    dataset = DegradedImageDataset(options(folder, **changes))
    whole = as_uint8(bicubic_shrink(as_float(cv2.imread(str(folder / 'a.png'))[..., ::-1].copy()), 2)).astype(int)
    seed_all(0)
    for _ in range(10):
        crop = (dataset[0]['gt'] * 255).round().numpy().transpose(1, 2, 0).astype(int)
        places = np.lib.stride_tricks.sliding_window_view(whole, (12, 12, 3))[:, :, 0]
        assert np.abs(places - crop).max(axis=(2, 3, 4)).min() <= 1


def test_training_follows_the_global_random_states(folder):
    dataset = DegradedImageDataset(options(folder))
    seed_all(1)
    first = [dataset[0] for _ in range(5)]
    seed_all(1)
    assert all(same(sample, dataset[0]) for sample in first)
    assert not same(first[0], first[1])
    strengths = [(sample['lq'] - sample['gt']).std().item() * 255 for sample in first]
    assert max(strengths) - min(strengths) > 5


def test_flips_and_rotations_can_be_switched_off(folder):
    plain = {'use_hflip': False, 'use_rot': False, 'gt_size': 60}
    wide = DegradedImageDataset(options(folder, **plain))
    crops = {wide[0]['gt'].numpy()[:, :, :1].tobytes() for _ in range(60)}
    columns = cv2.imread(str(folder / 'a.png'))[..., ::-1].transpose(2, 0, 1)
    allowed = {as_float(np.ascontiguousarray(columns[:, :, i : i + 1])).tobytes() for i in range(84)}
    assert crops <= allowed
    turned = DegradedImageDataset(options(folder, **{**plain, 'use_hflip': True, 'use_rot': True}))
    assert not {turned[0]['gt'].numpy()[:, :, :1].tobytes() for _ in range(20)} <= allowed


def test_validation_is_the_same_every_time(folder):
    dataset = DegradedImageDataset(options(folder, 'val'))
    seed_all(1)
    first = [dataset[i] for i in range(3)]
    state = random.getstate(), np.random.get_state()[1].tolist()
    again = DegradedImageDataset(options(folder, 'val'))
    assert all(same(first[i], again[i]) for i in (2, 0, 1))
    assert state == (random.getstate(), np.random.get_state()[1].tolist())
    strengths = [(sample['lq'] - sample['gt']).std().item() for sample in first]
    assert len({round(strength, 3) for strength in strengths}) == 3


def test_lmdb_and_folder_give_the_same_samples(folder, lmdb):
    from_folder = DegradedImageDataset(options(folder, 'val'))
    from_lmdb = DegradedImageDataset(options(lmdb, 'val', io_backend={'type': 'lmdb'}))
    assert list_lmdb_keys(lmdb) == sorted(NAMES)
    assert all(same(from_folder[i], from_lmdb[i]) for i in range(3))


def test_one_lmdb_serves_two_data_sets_and_the_workers_of_both(lmdb):
    training = DegradedImageDataset(options(lmdb, io_backend={'type': 'lmdb'}))
    validation = DegradedImageDataset(options(lmdb, 'val', io_backend={'type': 'lmdb'}))
    expected = [validation[i] for i in range(3)]  # opened here before the workers are forked
    training[0]
    found = list(DataLoader(validation, batch_size=None, num_workers=2))
    assert all(same(a, b) for a, b in zip(expected, found))
    assert len(list(DataLoader(training, batch_size=3, num_workers=1))) == 1


@pytest.mark.parametrize('room', [0, 2 * 60 * 84 * 3, 2**20])
def test_samples_do_not_depend_on_which_pictures_are_kept(folder, monkeypatch, room):
    read: list[int] = []

    class Counted(Pictures):
        def read(self, index: int) -> np.ndarray:
            read.append(index)
            return super().read(index)

    def draw(allowed: int) -> list[dict]:
        monkeypatch.setattr(degraded_image_dataset, '_KEPT_BYTES', allowed)
        dataset = DegradedImageDataset(options(folder))
        dataset.pictures = Counted(str(folder))
        seed_all(1)
        read.clear()
        return [dataset[i % 3] for i in range(30)]

    expected, found = draw(2**20), draw(room)
    assert all(same(a, b) for a, b in zip(expected, found))
    assert len(read) == {0: 30, 2 * 60 * 84 * 3: 2 + 10, 2**20: 3}[room]


def test_small_pictures_are_mirrored_up_to_the_crop(tmp_path):
    small = picture(0, 20, 40)
    cv2.imwrite(str(tmp_path / 'small.png'), small)
    dataset = DegradedImageDataset(options(tmp_path, gt_size=32, use_hflip=False, use_rot=False))
    crop = (dataset[0]['gt'] * 255).round().numpy()
    assert crop.shape == (3, 32, 32)
    np.testing.assert_array_equal(crop[:, 20:], crop[:, 18:6:-1])
    gray = DegradedImageDataset(options(tmp_path, gt_size=64, color='gray'))
    assert gray[0]['gt'].shape == (1, 64, 64)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'dataroot_gt': '/nowhere'}, 'dataroot_gt: no such folder: /nowhere'),
        ({'io_backend': {'type': 'lmdb'}}, 'dataroot_gt: not an LMDB'),
        ({'io_backend': {'type': 'memcached'}}, 'io_backend.type.*disk, lmdb'),
        ({'color': 'cmyk'}, 'color.*rgb, gray, y'),
        ({'degradation': {'type': 'blur'}}, 'degradation.type'),
        ({'degradation': None}, 'degradation: missing'),
        ({'gt_size': 23, 'scale': 2, 'degradation': {'type': 'bicubic'}}, 'gt_size: 23'),
        ({'gt_size': None}, 'gt_size'),
        ({'shrink': 0}, 'shrink'),
    ],
)
def test_wrong_options_are_named_with_their_data_set(folder, changes, named):
    with pytest.raises(UsageError, match=f'data set Pictures: {named}') as caught:
        DegradedImageDataset(options(folder, **changes))
    assert '\n' not in str(caught.value)


def test_missing_key_and_empty_folder(folder, tmp_path):
    without = options(folder)
    del without['dataroot_gt']
    with pytest.raises(UsageError, match='dataroot_gt: missing'):
        DegradedImageDataset(without)
    with pytest.raises(UsageError, match=r'dataroot_gt: no pictures \(.png'):
        DegradedImageDataset(options(tmp_path))


@pytest.mark.parametrize('content', [b'', b'not a picture'])
@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_does_not_decode_is_named_in_one_line(folder, tmp_path, content, workers):
    path = tmp_path / 'broken.png'
    path.write_bytes((folder / 'a.png').read_bytes())
    loader = DataLoader(DegradedImageDataset(options(tmp_path, 'val')), num_workers=workers)
    path.write_bytes(content)  # after the check at the start
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert isinstance(caught.value, PictureError)
    assert str(caught.value) == f'{path}: this picture does not decode'


def damaged(kind: str, whole: dict[str, bytes]) -> bytes:
    """A file that was damaged in some way."""
    if kind in ('empty', 'text'):
        return b'' if kind == 'empty' else b'no picture'
    form, what = kind.split()
    content = bytearray(whole[form])
    if what == 'cut':
        return bytes(content[: len(content) * 2 // 3])
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    'kind', ['empty', 'text', 'png cut', 'png changed', 'jpg cut', 'tif cut', 'webp cut', 'bmp cut']
)
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_damaged_pictures_are_named_before_the_first_step(folder, tmp_path, kind, phase):
    whole = {
        suffix: cv2.imencode(f'.{suffix}', picture(0))[1].tobytes() for suffix in ('png', 'jpg', 'tif', 'webp', 'bmp')
    }
    for suffix, content in whole.items():
        (tmp_path / f'good.{suffix}').write_bytes(content)
    assert len(DegradedImageDataset(options(tmp_path, phase))) == 5
    suffix = kind.split()[0] if ' ' in kind else 'png'
    for name in ('bad', 'worse'):
        (tmp_path / f'{name}.{suffix}').write_bytes(damaged(kind, whole))
    with pytest.raises(PictureError, match=rf'bad\.{suffix}: .*; 1 more cannot be read: .*worse\.{suffix}$') as caught:
        DegradedImageDataset(options(tmp_path, phase))
    assert '\n' not in str(caught.value)


def test_what_is_behind_a_jpeg_does_not_matter(tmp_path):
    content = cv2.imencode('.jpg', picture(0))[1].tobytes()
    (tmp_path / 'a.jpg').write_bytes(content + b'a note of the camera')
    (tmp_path / 'b.jpg').write_bytes(content + bytes(10_000))
    assert len(DegradedImageDataset(options(tmp_path))) == 2


def test_files_that_are_no_pictures_are_skipped_and_counted(folder, tmp_path, caplog):
    (tmp_path / 'a.png').write_bytes((folder / 'a.png').read_bytes())
    for name in ('._a.png', 'Thumbs.db', '.DS_Store'):
        (tmp_path / name).write_bytes(b'\0\5\x16\7 no picture')
    with caplog.at_level('INFO', 'basicsr'):
        dataset = DegradedImageDataset(options(tmp_path))
    assert dataset.pictures.names == ['a']
    assert f'{tmp_path}: 3 files that are no pictures skipped (.DS_Store, ._a.png, Thumbs.db)' in caplog.text
    dataset[0]


@pytest.mark.parametrize('suffix', ['gif', 'tga', 'tif', 'ppm', 'pgm', 'pbm', 'jfif', 'jpe'])
def test_pictures_that_basicsr_does_not_know_are_read(tmp_path, suffix):
    stored = Image.fromarray(picture(0)[..., ::-1] if suffix in ('tga', 'tif', 'ppm') else picture(0)[..., 0])
    if suffix == 'pbm':
        stored = stored.convert('1')
    stored.save(tmp_path / f'a.{suffix}', **({'quality': 90} if suffix in ('jfif', 'jpe') else {}))
    wanted = np.asarray(Image.open(tmp_path / f'a.{suffix}').convert('RGB'))
    np.testing.assert_array_equal(Pictures(str(tmp_path)).read(0), wanted)
    grey = cv2.cvtColor(wanted, cv2.COLOR_RGB2GRAY)
    found = Pictures(str(tmp_path), color='gray').read(0)[..., 0]
    assert np.abs(found.astype(int) - grey).max() <= (suffix == 'ppm')  # OpenCV's reader of PPM rounds differently


def test_transparent_tiffs_keep_their_colours(tmp_path):
    pixels = np.concatenate([picture(0), np.full((60, 84, 1), 7, np.uint8)], axis=2)
    cv2.imwrite(str(tmp_path / 'a.tif'), pixels)
    np.testing.assert_array_equal(Pictures(str(tmp_path)).read(0), picture(0)[..., ::-1])


def test_a_picture_that_went_away_is_named(tmp_path, folder):
    target = tmp_path / 'gone.png'
    target.write_bytes((folder / 'a.png').read_bytes())
    dataset = DegradedImageDataset(options(tmp_path))
    os.remove(target)
    with pytest.raises(PictureError, match=r'gone.png: No such file'):
        dataset[0]


def test_a_key_that_the_lmdb_lacks_is_named(lmdb, tmp_path):
    copy = tmp_path / 'copy.lmdb'
    copy.mkdir()
    (copy / 'data.mdb').write_bytes((lmdb / 'data.mdb').read_bytes())
    (copy / 'meta_info.txt').write_text('ghost.png (60,84,3) 1\n')
    dataset = DegradedImageDataset(options(copy, io_backend={'type': 'lmdb'}))
    with pytest.raises(PictureError, match=r'ghost: in meta_info\.txt, but not in the LMDB'):
        dataset[0]


def test_a_damaged_lmdb_is_named(tmp_path):
    (tmp_path / 'data.mdb').write_bytes(b'damaged' * 1000)
    (tmp_path / 'meta_info.txt').write_text('a.png (60,84,3) 1\n')
    dataset = DegradedImageDataset(options(tmp_path, io_backend={'type': 'lmdb'}))
    with pytest.raises(PictureError, match=str(tmp_path)):
        dataset[0]


@pytest.mark.parametrize('text', ['', 'a line of something else\n'])
def test_a_meta_file_of_another_kind_is_refused(lmdb, tmp_path, text):
    (tmp_path / 'data.mdb').write_bytes(b'')
    (tmp_path / 'meta_info.txt').write_text(text)
    with pytest.raises(UsageError, match=r'meta_info\.txt'):
        list_lmdb_keys(tmp_path)


def test_pictures_of_any_usual_kind_are_listed(tmp_path):
    for name in ('1.JPG', '2.tiff', '3.webp', '4.txt', '.hidden'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    assert [path.name for path in list_pictures(tmp_path).pictures] == ['1.JPG', '2.tiff', '3.webp']


@pytest.mark.parametrize('key', ['../outside', '/outside', 'a/../../b', '..', 'a\\b', 'a//b'])
def test_keys_that_lead_out_of_the_lmdb_are_refused(tmp_path, key):
    (tmp_path / 'data.mdb').touch()
    (tmp_path / 'meta_info.txt').write_text(f'{key}.png (8,8,3) 1\n')
    with pytest.raises(UsageError, match=r'the key .* is not allowed'):
        list_lmdb_keys(tmp_path)


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path):
    content = bytearray(cv2.imencode('.png', np.zeros((8, 8), np.uint8))[1].tobytes())
    content[16:24] = struct.pack('>II', 20_000, 20_000)
    content[29:33] = struct.pack('>I', zlib.crc32(content[12:29]))
    with pytest.raises(
        PictureError, match=r'more pixels than 200000000; .* OPENCV_IO_MAX_IMAGE_PIXELS sets this limit'
    ):
        read_picture(bytes(content), 'bomb.png')
