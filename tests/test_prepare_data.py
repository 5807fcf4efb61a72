"""tools/prepare_data.py: sub-images, the LMDB that the data set reads, and what happens when something is wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from PIL import Image

import basicsr_classpruning.data  # noqa: F401  # registers the data set
from basicsr_classpruning.data.pictures import Pictures
from tools import prepare_data


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / 'pictures'
    root.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(root / 'wide.png'), rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    cv2.imwrite(str(root / 'grey Größe.png'), rng.integers(0, 256, (40, 40), dtype=np.uint8))
    return root


def run(folder: Path, out: Path, *more: str) -> int:
    return prepare_data.main([str(folder), '--out', str(out), '--crop-size', '40', '--step', '20', *more])


@pytest.mark.parametrize(
    ('length', 'thresh', 'expected'),
    [(40, 0, [0]), (30, 0, [0]), (41, 0, [0, 1]), (41, 1, [0]), (80, 0, [0, 20, 40]), (90, 9, [0, 20, 40, 50])],
)
def test_sub_images_reach_the_border(length, thresh, expected):
    assert prepare_data.Cut(40, 20, thresh).starts(length) == expected


def test_the_data_set_reads_the_sub_images(folder, tmp_path, capsys):
    out = tmp_path / 'new' / 'train.lmdb'
    assert run(folder, out) == 0
    printed = capsys.readouterr()
    assert printed.out == f'{out}: 9 sub-images\n'
    assert '2/2' in printed.err  # the progress bar
    pictures = Pictures(str(out), 'lmdb')
    assert pictures.names == ['grey_Gr__e_s001'] + [f'wide_s{i:03d}' for i in range(1, 9)]
    wide = cv2.imread(str(folder / 'wide.png'))[..., ::-1]
    corners = [(top, left) for top in (0, 10) for left in (0, 20, 40, 50)]
    for index, (top, left) in enumerate(corners, start=1):
        np.testing.assert_array_equal(pictures.read(index), wide[top : top + 40, left : left + 40])
    assert (out / 'meta_info.txt').read_text().splitlines()[:2] == [
        'grey_Gr__e_s001.png (40,40,1) 1',
        'wide_s001.png (40,40,3) 1',
    ]
    options = {
        'name': 'Train',
        'type': 'DegradedImageDataset',
        'dataroot_gt': str(out),
        'io_backend': {'type': 'lmdb'},
        'degradation': {'type': 'bicubic'},
        'gt_size': 32,
        'scale': 2,
        'phase': 'train',
    }
    assert build_dataset(options)[3]['lq'].shape == (3, 16, 16)


def test_basicsrs_own_data_set_reads_it_too(folder, tmp_path):
    for name in ('gt', 'lq'):  # two, as lmdb opens none twice
        assert run(folder, tmp_path / f'{name}.lmdb') == 0
    options = {
        'name': 'Train',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(tmp_path / 'gt.lmdb'),
        'dataroot_lq': str(tmp_path / 'lq.lmdb'),
        'io_backend': {'type': 'lmdb'},
        'phase': 'val',
        'scale': 1,
    }
    dataset = build_dataset(options)
    assert len(dataset) == 9
    assert dataset[1]['gt'].shape == (3, 40, 40)


def test_nothing_is_left_of_a_run_that_failed(folder, tmp_path, capsys):
    (folder / 'zz.png').write_bytes(b'no picture')
    before = sorted(tmp_path.iterdir())
    assert run(folder, tmp_path / 'train.lmdb') == 1
    assert sorted(tmp_path.iterdir()) == before
    (line,) = capsys.readouterr().err.splitlines()  # no progress bar: nothing was begun
    assert line.startswith(f'error: {folder / "zz.png"}: cannot be read as a picture (')


def test_files_that_are_no_pictures_are_skipped_and_counted(folder, tmp_path, capsys):
    for name in ('._wide.png', 'Thumbs.db', '.DS_Store'):
        (folder / name).write_bytes(b'\0\5\x16\7 no picture')
    out = tmp_path / 'train.lmdb'
    assert run(folder, out) == 0
    printed = capsys.readouterr()
    assert printed.out == f'{out}: 9 sub-images\n'
    assert f'{folder}: 3 files that are no pictures skipped (.DS_Store, ._wide.png, Thumbs.db)\n' in printed.err


@pytest.mark.parametrize('suffix', ['tga', 'gif', 'tif'])
def test_pictures_that_opencv_does_not_read(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / 'in').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'in' / f'a.{suffix}')
    wanted = np.asarray(Image.open(tmp_path / 'in' / f'a.{suffix}').convert('RGB'))
    assert run(tmp_path / 'in', tmp_path / 'train.lmdb') == 0
    np.testing.assert_array_equal(Pictures(str(tmp_path / 'train.lmdb'), 'lmdb').read(0), wanted)


def test_an_existing_target_is_kept(folder, tmp_path, capsys):
    out = tmp_path / 'train.lmdb'
    out.mkdir()
    assert run(folder, out) == 2
    assert 'exists already' in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ('more', 'named'),
    [
        (['--crop-size', '0'], '--crop-size: 0 is not 1 or more'),
        (['--compress-level', '10'], '--compress-level: 10 is not 0 to 9'),
        (['--thresh-size', '-1'], '--thresh-size: -1 is not 0 or more'),
    ],
)
def test_numbers_that_make_no_sense_are_named(folder, tmp_path, capsys, more, named):
    assert run(folder, tmp_path / 'train.lmdb', *more) == 2
    assert capsys.readouterr().err == f'error: {named}\n'


def test_wrong_paths_are_named(folder, tmp_path, capsys):
    assert run(tmp_path / 'nowhere', tmp_path / 'train.lmdb') == 2
    assert run(folder, tmp_path / 'train') == 2
    (tmp_path / 'empty').mkdir()
    assert run(tmp_path / 'empty', tmp_path / 'train.lmdb') == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert 'no such folder' in lines[0]
    assert 'does not end with .lmdb' in lines[1]
    assert 'no pictures' in lines[2]


def test_pictures_that_would_share_a_key_are_refused(folder, tmp_path, capsys):
    (folder / 'wide.jpg').write_bytes((folder / 'wide.png').read_bytes())
    assert run(folder, tmp_path / 'train.lmdb') == 1
    assert "'wide'" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(folder, tmp_path, capsys, monkeypatch):
    def interrupt(path: Path) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_data, 'read', interrupt)
    assert run(folder, tmp_path / 'train.lmdb') == 130
    assert list(tmp_path.iterdir()) == [folder]
    assert capsys.readouterr().err.endswith('interrupted: nothing was written\n')
