"""Pictures in and out: formats, depths, alpha, orientation, profiles, limits, atomic files."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images import writing
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.reading import read_picture
from basicsr_classpruning.images.writing import write_picture, write_rows


def samples(height=37, width=53, channels=3, dtype=np.uint8, seed=0):
    top = 255 if dtype == np.uint8 else 65535
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, channels)).astype(dtype)


def picture(channels, dtype, alpha, form, **kwargs):
    pixels = samples(channels=channels + alpha, dtype=dtype, **kwargs)
    return Picture(pixels[..., :channels], pixels[..., channels] if alpha else None, Encoding(form))


LOSSLESS = [
    (form, channels, dtype, alpha)
    for form, dtypes in (('PNG', (np.uint8, np.uint16)), ('TIFF', (np.uint8, np.uint16)), ('BMP', (np.uint8,)))
    for dtype in dtypes
    for channels in (1, 3)
    for alpha in (0, 1)
    if not (form == 'BMP' and channels == 1 and alpha)
] + [('WEBP', 3, np.uint8, 0), ('WEBP', 3, np.uint8, 1)]


@pytest.mark.parametrize(('form', 'channels', 'dtype', 'alpha'), LOSSLESS)
def test_lossless_round_trip(tmp_path, form, channels, dtype, alpha):
    wanted = picture(channels, dtype, alpha, form)
    path = tmp_path / f'x.{form.lower()}'
    write_picture(path, wanted)
    found = read_picture(path)
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert found.pixels.dtype == dtype
    assert found.encoding.format == form
    assert found.encoding.lossless
    if alpha:
        np.testing.assert_array_equal(found.alpha, wanted.alpha)
    else:
        assert found.alpha is None


@pytest.mark.parametrize(('form', 'dtype'), [('PNG', np.uint8), ('PNG', np.uint16), ('TIFF', np.uint16)])
def test_other_readers_agree(tmp_path, form, dtype):
    wanted = picture(3, dtype, 1, form, height=150)
    path = tmp_path / f'x.{form.lower()}'
    write_picture(path, wanted)
    other = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(other[..., [2, 1, 0]], wanted.pixels)
    np.testing.assert_array_equal(other[..., 3], wanted.alpha)


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('kind', ['png', 'tif'])
def test_16_bit_files_of_another_writer(tmp_path, kind, channels):
    pixels = samples(channels=channels, dtype=np.uint16)
    path = tmp_path / f'x.{kind}'
    if kind == 'tif':
        tifffile.imwrite(path, pixels.astype('>u2'), photometric='rgb', byteorder='>')
    else:
        flags = [cv2.IMWRITE_PNG_COMPRESSION, 6]
        cv2.imwrite(str(path.with_suffix('.png')), pixels[..., [2, 1, 0, 3][:channels]], flags)
        path = path.with_suffix('.png')
    found = read_picture(path)
    np.testing.assert_array_equal(found.pixels, pixels[..., :3])
    if channels == 4:
        np.testing.assert_array_equal(found.alpha, pixels[..., 3])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (64, 40), (129, 33), (700, 21)])
def test_jpeg_made_of_strips_equals_a_whole_one(tmp_path, channels, height, width):
    """The strips between restart markers decode to exactly what one encoder would have written."""
    gradient = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3])[:channels] // 4 % 256
    pixels = gradient.astype(np.uint8)
    path = tmp_path / 'x.jpg'
    write_picture(path, Picture(pixels, None, Encoding('JPEG', lossless=False)))
    whole = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(whole, 'JPEG', quality=95, subsampling=0)
    wanted = np.asarray(Image.open(whole)).reshape(height, width, channels)
    np.testing.assert_array_equal(read_picture(path).pixels, wanted)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(wanted.shape)[..., ::-1], wanted)


def test_bands_of_any_height_make_the_same_file(tmp_path):
    pixels = samples(height=300)
    files = []
    for cuts in ([], [1], [63, 64, 200], list(range(1, 300))):
        path = tmp_path / f'{len(cuts)}.png'
        write_rows(path, Encoding('PNG'), 300, 53, np.split(pixels, cuts))
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_png_compresses_about_as_well_as_pillow(tmp_path):
    data = pytest.importorskip('skimage.data')
    pixels = data.astronaut()
    write_picture(tmp_path / 'ours.png', Picture(pixels, None, Encoding('PNG')))
    Image.fromarray(pixels).save(tmp_path / 'pillow.png')
    assert (tmp_path / 'ours.png').stat().st_size < 1.05 * (tmp_path / 'pillow.png').stat().st_size


def test_lossy_webp_stays_lossy(tmp_path):
    smooth = cv2.GaussianBlur(samples(64, 64), (9, 9), 3)
    Image.fromarray(smooth).save(tmp_path / 'x.webp', quality=80)
    found = read_picture(tmp_path / 'x.webp')
    assert not found.encoding.lossless
    write_picture(tmp_path / 'y.webp', found)
    again = read_picture(tmp_path / 'y.webp')
    assert not again.encoding.lossless
    assert np.abs(again.pixels.astype(int) - found.pixels).mean() < 4


def test_palettes_keys_and_single_bits(tmp_path):
    pixels = samples(height=20, width=30)
    Image.fromarray(pixels).quantize(16).save(tmp_path / 'palette.png')
    wanted = np.asarray(Image.open(tmp_path / 'palette.png').convert('RGB'))
    np.testing.assert_array_equal(read_picture(tmp_path / 'palette.png').pixels, wanted)

    Image.fromarray(pixels).quantize(16).save(tmp_path / 'clear.png', transparency=3)
    found = read_picture(tmp_path / 'clear.png')
    assert set(np.unique(found.alpha)) == {0, 255}

    key = tuple(int(v) for v in pixels[2, 3])
    Image.fromarray(pixels).save(tmp_path / 'key.png', transparency=key)
    assert read_picture(tmp_path / 'key.png').alpha[2, 3] == 0

    Image.fromarray(pixels[..., 0] > 127).save(tmp_path / 'bits.png')
    found = read_picture(tmp_path / 'bits.png')
    np.testing.assert_array_equal(found.pixels[..., 0], np.where(pixels[..., 0] > 127, 255, 0))


def test_grey_16_bit_png_with_alpha(tmp_path):
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    pixels = samples(channels=2, dtype=np.uint16)
    raw = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    head = struct.pack('>IIBBBBB', 53, 37, 16, 4, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')
    (tmp_path / 'x.png').write_bytes(data)
    found = read_picture(tmp_path / 'x.png')
    np.testing.assert_array_equal(found.pixels[..., 0], pixels[..., 0])
    np.testing.assert_array_equal(found.alpha, pixels[..., 1])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(samples(8, 16)).save(tmp_path / 'x.png', exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / 'x.png')))
    np.testing.assert_array_equal(read_picture(tmp_path / 'x.png').pixels, wanted)


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_colour_profile_is_kept(tmp_path, form):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    path = tmp_path / f'x.{form.lower()}'
    write_picture(path, Picture(samples(), None, Encoding(form, icc=icc)))
    assert Image.open(path).info['icc_profile'] == icc
    assert read_picture(path).encoding.icc == icc


def test_profile_of_a_cmyk_picture_is_dropped(tmp_path):
    fake = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    fake[16:20] = b'CMYK'
    Image.fromarray(samples()).convert('CMYK').save(tmp_path / 'x.jpg', icc_profile=bytes(fake))
    found = read_picture(tmp_path / 'x.jpg')
    assert found.encoding.icc is None
    assert found.pixels.shape == (37, 53, 3)


def test_size_is_refused_before_decoding(tmp_path):
    """A file of a few hundred bytes that announces 12 gigapixels costs neither time nor memory."""
    head = b'IHDR' + struct.pack('>IIBBBBB', 120_000, 100_000, 8, 2, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head))
    (tmp_path / 'bomb.png').write_bytes(data + struct.pack('>I', 200) + b'IDAT' + b'\0' * 200)
    with pytest.raises(UserError, match=r'bomb\.png: 120000 x 100000 is 12000\.0 megapixels.*`max_pixels`'):
        read_picture(tmp_path / 'bomb.png')
    write_picture(tmp_path / 'ok.png', picture(3, np.uint8, 0, 'PNG'))
    with pytest.raises(UserError, match='above the limit'):
        read_picture(tmp_path / 'ok.png', max_pixels=37 * 53 - 1)
    assert read_picture(tmp_path / 'ok.png', max_pixels=37 * 53).pixels.shape == (37, 53, 3)


@pytest.mark.parametrize(
    ('form', 'dtype'),
    [(form, np.uint8) for form in ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP')] + [('PNG', np.uint16), ('TIFF', np.uint16)],
)
def test_damaged_files_are_one_error(tmp_path, form, dtype):
    """Whatever is cut off or overwritten: a picture or a UserError with the file's name, never another exception."""
    path = tmp_path / f'x.{form.lower()}'
    write_picture(path, picture(3, dtype, 0, form))
    whole = path.read_bytes()
    for size in (0, 3, 20, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf'x\.{form.lower()}: '):
            read_picture(path)
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        message = error_of(path)
        assert message is None or (f'{path.name}: ' in message and '\n' not in message)


def error_of(path):
    try:
        read_picture(path, max_pixels=10**6)
    except UserError as error:
        return str(error)
    return None


def test_not_pictures(tmp_path):
    (tmp_path / 'text.png').write_text('hello')
    (tmp_path / 'folder.png').mkdir()
    for name in ('text.png', 'folder.png', 'absent.png'):
        with pytest.raises(UserError, match=name):
            read_picture(tmp_path / name)


def test_float_pictures_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / 'x.tif'), samples(channels=1)[..., 0].astype(np.float32))
    with pytest.raises(UserError, match=r'x\.tif'):
        read_picture(tmp_path / 'x.tif')


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(b'before')

    def rows():
        yield samples(height=64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, Encoding('PNG'), 128, 53, rows())
    assert path.read_bytes() == b'before'
    assert os.listdir(tmp_path) == ['x.png']


def test_unwritable_folder_and_full_disk_are_named(tmp_path):
    with pytest.raises(UserError, match=r'x\.png: could not be written'):
        write_picture(tmp_path / 'absent' / 'x.png', picture(3, np.uint8, 0, 'PNG'))

    def rows():
        yield samples(height=64)
        raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match='No space left'):
        write_rows(tmp_path / 'y.png', Encoding('PNG'), 128, 53, rows())
    assert os.listdir(tmp_path) == []


def test_formats_with_limits_refuse_before_the_work(tmp_path):
    with pytest.raises(UserError, match='WEBP holds at most 16383 pixels a side'):
        writing.check_writable(Encoding('WEBP'), 100, 20_000, 'x.webp')
    with pytest.raises(UserError, match='JPEG holds at most 65500'):
        writing.check_writable(Encoding('JPEG'), 70_000, 20, 'x.jpg')
