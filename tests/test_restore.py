"""``classpruning restore``: files in, files out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, features

from basicsr_classpruning import kernels
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.cli import parse
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.reading import open_picture, read_picture
from basicsr_classpruning.images.writing import Rows, write_picture, write_pictures
from basicsr_classpruning.inference import files
from basicsr_classpruning.inference.restorer import Restorer
from basicsr_classpruning.safe_files import save_file

BASE = {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'small.pth'
    torch.manual_seed(0)
    net = ClassPruning(base=BASE, candidates=['1:4', '2:4', '4:4'])
    net.rank_by_magnitude()
    save_file({'params': net.state_dict(), 'network_g': net.options}, path)
    return path


@pytest.fixture(scope='module')
def restorer(model):
    from basicsr_classpruning import load

    return Restorer(load(model), tile=32, overlap=4, candidate='2:4', backend='dense', threads=1, device='cpu')


def call(*argv):
    args = parse(['restore', *map(str, argv), '--backend', 'dense', '--device', 'cpu', '--threads', '1'])
    return args.func(args)


def put(path, height=40, width=50, channels=3, dtype=np.uint8, alpha=False, form='PNG', seed=0):
    top = np.iinfo(dtype).max
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).random((height, width, 4)), (0, 0), 2)
    pixels = (np.clip(smooth * 2 - 0.5, 0, 1) * top).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Picture(pixels[..., :channels], pixels[..., 3] if alpha else None, Encoding(form, form != 'JPEG'))
    write_picture(path, picture)
    return picture


def test_a_folder_keeps_names_formats_depths_and_alpha(tmp_path, model):
    put(tmp_path / 'in/a.png')
    put(tmp_path / 'in/deep/er/b.tif', dtype=np.uint16, alpha=True, form='TIFF')
    put(tmp_path / 'in/c.JPG', form='JPEG')
    put(tmp_path / 'in/d.webp', form='WEBP')
    put(tmp_path / 'in/e.bmp', channels=1, form='BMP')
    put(tmp_path / 'in/f.png', channels=1, dtype=np.uint16)
    (tmp_path / 'in/readme.txt').write_text('no picture')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', '--candidate', '2:4') == 0
    found = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.*'))
    assert found == ['a.png', 'c.JPG', 'd.webp', 'deep/er/b.tif', 'e.bmp', 'f.png']
    for name in found:
        before, after = read_picture(tmp_path / 'in' / name), read_picture(tmp_path / 'out' / name)
        assert after.pixels.shape == (80, 100, before.pixels.shape[2])
        assert after.pixels.dtype == before.pixels.dtype
        assert after.encoding == before.encoding
        assert (after.alpha is None) == (before.alpha is None)


def test_the_file_holds_what_the_restorer_gives(tmp_path, restorer):
    picture = put(tmp_path / 'x.png', 90, 70)
    (job,) = files.find_jobs(tmp_path / 'x.png', tmp_path / 'out', False)
    files.restore_file(restorer, job, 10**6, lambda pixels: None)
    np.testing.assert_array_equal(read_picture(tmp_path / 'out/x.png').pixels, restorer.restore(picture.pixels)[0])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_alpha_is_enlarged_bicubically_whatever_the_bands(tmp_path, restorer, dtype):
    picture = put(tmp_path / 'x.png', 100, 30, alpha=True, dtype=dtype)
    (job,) = files.find_jobs(tmp_path / 'x.png', tmp_path / 'out', False)
    files.restore_file(restorer, job, 10**6, lambda pixels: None)
    wanted = cv2.resize(picture.alpha, (60, 200), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(read_picture(tmp_path / 'out/x.png').alpha, wanted)


def test_json_and_summary(tmp_path, model, capsys):
    for i in range(3):
        put(tmp_path / f'in/{i}.png', 60, 60, seed=i)
    options = ('--budget', 0.7, '--tile', 24, '--overlap', 4, '--json', tmp_path / 'x.json')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *options) == 0
    report = json.loads((tmp_path / 'x.json').read_text())
    assert report['pictures'] == 3
    assert report['saved'] == pytest.approx(1 - report['average_macs'] / report['macs_dense'])
    assert 0.7 * 0.9 <= 1 - report['saved'] <= 0.7  # of few tiles
    assert sum(report['class_share'].values()) == pytest.approx(1)
    assert [file['picture'] for file in report['files']] == ['0.png', '1.png', '2.png']
    output = capsys.readouterr()
    assert '3 picture(s) restored; average MACs' in output.out
    assert output.out.count('\n') == 1
    assert 'px' in output.err  # the bar


def test_a_folder_shares_a_budget(tmp_path, model, capsys):
    for number, side in enumerate([40, 70, 100]):
        put(tmp_path / f'in/{number}.png', side, side, seed=number)
    frames = [Image.fromarray(np.full((40, 40, 3), 60 * k, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / 'in/pages.tif', save_all=True, append_images=frames[1:])
    (tmp_path / 'in/broken.png').write_bytes((tmp_path / 'in/0.png').read_bytes()[:200])
    options = ['--model', model, '--tile', '32', '--patch', '0', '--budget', '0.7', '--budget-over', 'folder']
    assert call(tmp_path / 'in', '--output', tmp_path / 'out', *options, '--json', tmp_path / 'run.json') == 1
    report = json.loads((tmp_path / 'run.json').read_text())
    assert (report['budget_over'], report['pictures']) == ('folder', 4)
    assert 'broken.png' in report['failed'][0]['error']
    assert report['spent'] <= 0.7 * (1 + 1e-9)
    # All as the Python interface routes them.
    from basicsr_classpruning import load

    means = Restorer(load(model), tile=32, budget=0.7, backend='dense', threads=1, device='cpu')
    read = [read_picture(tmp_path / f'in/{number}.png').pixels for number in range(3)]
    read += [np.asarray(frame) for frame in frames]
    routings = means.route_together([means.start(pixels).survey() for pixels in read])
    for number in range(3):
        expected = np.concatenate(list(means.start(read[number], routing=routings[number]).bands()))
        np.testing.assert_array_equal(read_picture(tmp_path / f'out/{number}.png').pixels, expected)
    capsys.readouterr()
    # A second run finds nothing to do but the broken one.
    assert call(tmp_path / 'in', '--output', tmp_path / 'out', *options) == 1
    assert '4 finished before' in capsys.readouterr().out


def test_unreadable_pictures_are_named_and_do_not_stop_the_others(tmp_path, model, capsys):
    put(tmp_path / 'in/a.png')
    (tmp_path / 'in/b.png').write_bytes(b'not a picture')
    put(tmp_path / 'in/c.png')
    put(tmp_path / 'in/huge.png', 200, 100)
    options = ('--max-pixels', 10_000, '--json', tmp_path / 'x.json')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *options) == 1
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png', 'c.png']
    output = capsys.readouterr()
    assert '2 failed: b.png, huge.png' in output.out
    assert 'b.png: cannot be read as a picture' in output.err
    assert 'megapixels, above the limit' in output.err
    assert [item['picture'] for item in json.loads((tmp_path / 'x.json').read_text())['failed']] == [
        'b.png',
        'huge.png',
    ]


def animate(path, count=3, channels=3, **options):
    """Writes an animation and returns its frames as they are shown."""
    rng = np.random.default_rng(0)
    stored = [cv2.GaussianBlur(rng.random((40, 50, channels)), (0, 0), 2) for _ in range(count)]
    first, *others = [Image.fromarray((np.clip(frame * 2 - 0.5, 0, 1) * 255).astype(np.uint8)) for frame in stored]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, **options)
    with open_picture(path) as file:
        return list(file.pictures())


@pytest.mark.parametrize(
    ('name', 'result', 'options'),
    [
        ('a.png', 'a.png', {'duration': [20, 50, 90]}),
        ('a.apng', 'a.apng', {'duration': [20, 50, 90], 'format': 'PNG'}),
        ('a.webp', 'a.webp', {'duration': [20, 50, 90], 'lossless': True, 'exact': True}),
        ('a.gif', 'a.png', {'duration': [20, 50, 90], 'loop': 0}),
        ('a.tif', 'a.tif', {}),
    ],
)
def test_frames_and_pages_are_restored_one_by_one(tmp_path, model, restorer, capsys, name, result, options):
    stored = animate(tmp_path / 'in' / name, **options)
    arguments = ('--candidate', '2:4', '--tile', 32, '--overlap', 4, '--json', tmp_path / 'x.json')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *arguments) == 0
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [result]
    with open_picture(tmp_path / 'out' / result) as file:
        found = list(file.pictures())
        animation = file.animation()
    assert len(found) == len(stored) == 3
    for before, after in zip(stored, found):
        np.testing.assert_array_equal(after.pixels, restorer.restore(before.pixels)[0])
    assert animation is None if name == 'a.tif' else animation.durations == (20, 50, 90)
    (entry,) = json.loads((tmp_path / 'x.json').read_text())['files']
    assert entry['note'] == ''
    assert entry['pixels'] == 3 * 40 * 50
    assert ('1 written as PNG' in capsys.readouterr().out) == (result != name and name == 'a.gif')


def test_pages_of_different_sizes_and_kinds(tmp_path, model, restorer):
    pages = [put(tmp_path / f'{index}.tif', 40 + index, 50, channels, dtype, form='TIFF', seed=index)
             for index, (channels, dtype) in enumerate([(3, np.uint8), (1, np.uint16), (3, np.uint16)])]  # fmt: skip
    (tmp_path / 'in').mkdir()
    write_pictures(
        tmp_path / 'in/x.tif', [Rows(one.encoding, *one.pixels.shape[:2], [one.pixels]) for one in pages], None, 0
    )
    options = ('--candidate', '2:4', '--tile', 32, '--overlap', 4, '--class-map')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *options) == 0
    with open_picture(tmp_path / 'out/x.tif') as file:
        for page, found in zip(pages, file.pictures()):
            np.testing.assert_array_equal(found.pixels, restorer.restore(page.pixels)[0])
        assert len(file) == 3
    assert (tmp_path / 'out/x_classes.png').exists()


def test_a_failing_frame_leaves_nothing(tmp_path, model, capsys):
    animate(tmp_path / 'in/a.png', duration=20)
    data = (tmp_path / 'in/a.png').read_bytes()
    (tmp_path / 'in/a.png').write_bytes(data[: data.rindex(b'fdAT') + 30])
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out') == 1
    assert 'failed: ' in capsys.readouterr().err
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]


def test_what_is_not_restored_is_said(tmp_path, model, capsys):
    animate(tmp_path / 'in/a.jpg', count=2, format='MPO')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', '--json', tmp_path / 'x.json') == 0
    note = 'only the first of its 2 pictures is read'
    assert f'warning: {tmp_path}/in/a.jpg: {note}\n' in capsys.readouterr().err
    assert json.loads((tmp_path / 'x.json').read_text())['files'][0]['note'] == note


def test_formats_that_are_only_read_become_png_and_never_replace_another(tmp_path, model, capsys):
    pixels = put(tmp_path / 'in/a.png').pixels
    for name in ('a.gif', 'b.tga', 'c.ppm', 'd.pgm', 'sub/a.gif', 'e.jfif', 'f.jpe', 'g.gif', 'g.tga'):
        (tmp_path / 'in/sub').mkdir(exist_ok=True)
        image = Image.fromarray(pixels)
        image = image.convert('L') if name == 'd.pgm' else image
        image.save(tmp_path / 'in' / name)
    for name in ('._a.png', 'Thumbs.db', '.DS_Store', 'raw.nef'):
        (tmp_path / 'in' / name).write_bytes(b'no picture')
    arguments = ('--json', tmp_path / 'x.json', '--candidate', '2:4')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *arguments) == 0
    found = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.*'))
    assert found == [
        'a.gif.png', 'a.png', 'b.png', 'c.png', 'd.png', 'e.jfif', 'f.jpe', 'g.gif.png', 'g.tga.png', 'sub/a.png',
    ]  # fmt: skip
    for name in found:
        assert read_picture(tmp_path / 'out' / name).encoding.format == ('JPEG' if name[0] in 'ef' else 'PNG')
    np.testing.assert_array_equal(
        read_picture(tmp_path / 'out/b.png').pixels, read_picture(tmp_path / 'out/a.png').pixels
    )
    printed = capsys.readouterr().out
    assert '10 picture(s) restored' in printed
    assert '7 written as PNG, as their formats are only read' in printed
    assert '4 files that are no pictures skipped (' in printed
    report = json.loads((tmp_path / 'x.json').read_text())
    assert sorted(report['not_pictures']) == ['.DS_Store', '._a.png', 'Thumbs.db', 'raw.nef']
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *arguments) == 0
    assert '10 finished before and skipped' in capsys.readouterr().out


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_avif_is_read(tmp_path, model):
    put(tmp_path / 'x.png')
    (tmp_path / 'in').mkdir()
    with Image.open(tmp_path / 'x.png') as image:
        image.save(tmp_path / 'in/a.avif', quality=90)
    with Image.open(tmp_path / 'in/a.avif') as image:
        wanted = np.asarray(image.convert('RGB'))
    np.testing.assert_array_equal(read_picture(tmp_path / 'in/a.avif').pixels, wanted)
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out') == 0
    assert read_picture(tmp_path / 'out/a.png').encoding.format == 'PNG'


def test_floats_are_restored_as_floats(tmp_path, model, restorer):
    pixels = cv2.GaussianBlur(np.random.default_rng(0).random((40, 50, 4), np.float32), (0, 0), 2)
    (tmp_path / 'in').mkdir()
    write_picture(tmp_path / 'in/x.tif', Picture(pixels[..., :3], pixels[..., 3], Encoding('TIFF')))
    options = ('--candidate', '2:4', '--tile', 32, '--overlap', 4, '--class-map')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *options) == 0
    found = read_picture(tmp_path / 'out/x.tif')
    np.testing.assert_array_equal(found.pixels, restorer.restore(pixels[..., :3])[0])
    assert found.alpha.dtype == np.float32


def test_finished_pictures_are_skipped_unless_told_otherwise(tmp_path, model, capsys):
    put(tmp_path / 'in/a.png')
    put(tmp_path / 'in/b.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/a.png').write_bytes(b'finished')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out') == 0
    assert (tmp_path / 'out/a.png').read_bytes() == b'finished'
    assert '1 finished before and skipped' in capsys.readouterr().out
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', '--class-map') == 0
    assert read_picture(tmp_path / 'out/a.png').pixels.shape == (80, 100, 3)  # its class map was missing
    (tmp_path / 'out/a.png').write_bytes(b'finished')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', '--overwrite') == 0
    assert read_picture(tmp_path / 'out/a.png').pixels.shape == (80, 100, 3)


def test_results_never_replace_originals(tmp_path, model):
    put(tmp_path / 'in/a.png')
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    for source, output in (('in', 'in'), ('in', 'link'), ('in/a.png', 'in'), ('link', 'in')):
        with pytest.raises(UsageError, match='replace the original'):
            call(tmp_path / source, '--model', model, '--output', tmp_path / output)


def test_results_inside_the_input_folder_are_no_input(tmp_path):
    put(tmp_path / 'a.png')
    put(tmp_path / 'out/a.png')
    jobs = files.find_jobs(tmp_path, tmp_path / 'out', False)
    assert [job.name for job in jobs] == ['a.png']


def test_wrong_calls(tmp_path, model):
    put(tmp_path / 'in/a.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('')
    good = ('--model', model, '--output', tmp_path / 'out')
    for arguments, message in (
        ((tmp_path / 'absent', *good), 'no such file or folder'),
        ((tmp_path / 'empty', *good), 'no pictures in it'),
        ((tmp_path / 'in', '--model', model, '--output', tmp_path / 'file'), 'is not a folder'),
        ((tmp_path / 'in', *good, '--budget', 0.01), 'cannot be met: allowed is'),
        ((tmp_path / 'in', *good, '--candidate', '3:4'), '1:4, 2:4, 4:4'),
        ((tmp_path / 'in', *good, '--tile', 4), 'tile 4'),
        ((tmp_path / 'in', *good, '--max-pixels', 0), '--max-pixels 0'),
        ((tmp_path / 'in', *good, '--budget-over', 'folder'), '--budget-over folder: needs --budget'),
    ):
        with pytest.raises(UsageError, match=message):
            call(*arguments)
    with pytest.raises(UserError, match=r'absent\.pth: no such file'):
        call(tmp_path / 'in', '--model', tmp_path / 'absent.pth', '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_class_maps(tmp_path, model):
    put(tmp_path / 'in/a.png', 100, 140)
    put(tmp_path / 'in/a.jpg', 100, 140, form='JPEG')
    put(tmp_path / 'in/g.png', 1, 1, channels=1, dtype=np.uint16)
    options = ('--budget', 0.7, '--tile', 32, '--overlap', 4, '--class-map')
    assert call(tmp_path / 'in', '--model', model, '--output', tmp_path / 'out', *options) == 0
    maps = sorted(path.name for path in (tmp_path / 'out').glob('*_classes.png'))
    assert maps == ['a.jpg_classes.png', 'a.png_classes.png', 'g_classes.png']
    shown = read_picture(tmp_path / 'out/a.png_classes.png').pixels
    assert shown.shape[1] == 320
    assert shown.shape[0] > 320 * 100 / 140  # the legend


def test_class_map_shows_each_tiles_candidate(restorer):
    from basicsr_classpruning.inference.class_map import draw_class_map
    from basicsr_classpruning.inference.tiling import plan_tiles

    grid = plan_tiles(320, 640, 320, 0)
    grey = Picture(np.full((320, 640, 1), 128, np.uint8), None, Encoding('PNG'))
    shown = draw_class_map(grey, grid, np.array([0, 2]), ('1:4', '2:4', '4:4')).pixels.astype(int)
    left, right = shown[100, 100], shown[100, 500]
    assert left.sum() < right.sum()
    assert left[2] > left[0]  # the sparsest is dark blue-violet
    assert right[0] > right[2]  # the densest yellow
    assert (shown[100, 320] == 255).all()


def test_interrupted_runs_leave_whole_files_only(tmp_path, restorer):
    """Nothing but finished pictures is in the output folder while pictures are being restored."""
    for i in range(12):
        put(tmp_path / f'in/{i:02}.png', 64, 64, seed=i)
    jobs = files.find_jobs(tmp_path / 'in', tmp_path / 'out', False)
    stop = threading.Event()
    broken = []

    def watch():
        while not stop.is_set():
            for path in (tmp_path / 'out').glob('[!.]*'):
                if not path.read_bytes().endswith(b'IEND\xaeB`\x82'):
                    broken.append(path)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = files.restore_files(restorer, jobs, 10**6, lambda pixels: None)
    for _ in range(5):
        next(results)
    results.close()  # as Ctrl-C does
    time.sleep(0.5)
    stop.set()
    watcher.join()
    assert not broken
    assert 5 <= len(list((tmp_path / 'out').iterdir())) < 12
    assert not list((tmp_path / 'out').glob('.*'))


def test_two_processes_in_one_folder_do_not_damage_each_other(tmp_path, model):
    for i in range(3):
        put(tmp_path / f'in/{i}.png', 50, 50, seed=i)
    script = (
        'import sys, basicsr_classpruning\n'
        f'sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        'from test_restore import call\n'
        'sys.exit(call(*sys.argv[1:]))\n'
    )

    def start(output, threads):
        arguments = [tmp_path / 'in', '--model', model, '--output', output, '--candidate', '2:4', '--overwrite']
        command = [sys.executable, '-c', script, *map(str, arguments)]
        environment = {**os.environ, 'OMP_NUM_THREADS': threads}
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    for together in ([start(tmp_path / 'out', '1'), start(tmp_path / 'out', '2')], [start(tmp_path / 'alone', '3')]):
        for process in together:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == [f'{i}.png' for i in range(3)]
    for name in names:
        assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'alone' / name).read_bytes()


def test_dense_checkpoints_are_restored_too(tmp_path, model):
    from basicsr_classpruning import load

    put(tmp_path / 'a.png')
    save_file({'params': load(model).dense.net.state_dict()}, tmp_path / 'dense.pth')
    (tmp_path / 'arch.yml').write_text('network_g:\n' + ''.join(f'  {key}: {value}\n' for key, value in BASE.items()))
    options = ('--arch', tmp_path / 'arch.yml', '--json', tmp_path / 'x.json', '--class-map')
    output = tmp_path / 'out'
    assert call(tmp_path / 'a.png', '--model', tmp_path / 'dense.pth', '--output', output, *options) == 0
    report = json.loads((tmp_path / 'x.json').read_text())
    assert report['saved'] == 0
    assert report['class_share'] == {}
    wanted = tmp_path / 'wanted'
    assert call(tmp_path / 'a.png', '--model', model, '--output', wanted, '--candidate', '4:4') == 0
    assert (output / 'a.png').read_bytes() == (wanted / 'a.png').read_bytes()


def test_no_network_is_traced_while_pictures_are_restored(restorer, monkeypatch):
    """Tracing changes how modules are called in all threads, and pictures are restored in several."""
    traced = []
    trace = torch.fx.Tracer.trace
    monkeypatch.setattr('torch.fx.Tracer.trace', lambda *args: traced.append(args[1]) or trace(*args))
    candidates = restorer.network.candidates
    routed = Restorer(restorer.network)
    assert len(traced) == (len(candidates) if kernels.available() else 0)  # in time
    for index in range(len(candidates)):
        routed.engines.prepare(index, torch.rand(1, 3, 24, 24))
    assert len(traced) == (len(candidates) if kernels.available() else 0)
    traced.clear()
    Restorer(restorer.network, candidate=candidates[0])
    assert len(traced) == (1 if kernels.available() else 0)  # the others are not wanted


def test_failures_of_the_network_are_named_as_such(tmp_path, restorer, monkeypatch):
    put(tmp_path / 'in/a.png')
    (job,) = files.find_jobs(tmp_path / 'in', tmp_path / 'out', False)

    def fail(x):
        raise RuntimeError('not enough memory: you tried to allocate\nmuch')

    monkeypatch.setitem(restorer.engines._made, 1, fail)
    (result,) = files.restore_files(restorer, [job], 10**6, lambda pixels: None)
    assert result.error == f'{tmp_path}/in/a.png: not enough memory: you tried to allocate'
    assert not list((tmp_path / 'out').iterdir())
