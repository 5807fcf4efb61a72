"""What a file says beside its pixels: carried over, with the rotation applied once."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, features

from basicsr_classpruning.images.metadata import png_chunks, upright_exif
from basicsr_classpruning.images.picture import Resolution
from basicsr_classpruning.images.reading import read_picture
from basicsr_classpruning.images.writing import Rows, result_encoding, write_pictures, write_rows

CASES = Path(__file__).parents[2] / 'shared' / 'cases'
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="Hut"/></x:xmpmeta>'
SUFFIXES = ('png', 'jpg', 'tif', 'webp')


def pixels(height=8, width=20):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exif_block(orientation=6):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = 'Maker', 'Model', orientation
    exif[0x8298] = 'Copyright Jane Doe'
    exif.get_ifd(0x8769).update(
        {0x829A: 0.008, 0x9003: '2024:05:06 07:08:09', 0xA002: 20, 0xA003: 8, 0x927C: b'\1\2\3'}
    )
    exif.get_ifd(0x8825).update({1: 'N', 2: (47.0, 30.0, 12.5)})
    return exif


def restore(source, target, scale=1):
    """Reads a picture and writes it, enlarged by repetition, as results are written."""
    found = read_picture(source)
    large = found.pixels.repeat(scale, 0).repeat(scale, 1)
    write_rows(target, result_encoding(found.encoding), *large.shape[:2], [large])
    return found


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_exif_is_carried_over_and_the_rotation_applied_once(tmp_path, suffix):
    Image.fromarray(pixels()).save(tmp_path / f'x.{suffix}', exif=exif_block().tobytes())
    with Image.open(tmp_path / f'x.{suffix}') as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    np.testing.assert_array_equal(restore(tmp_path / f'x.{suffix}', tmp_path / f'y.{suffix}', 2).pixels, wanted)
    with Image.open(tmp_path / f'y.{suffix}') as image:
        assert image.size == (16, 40)
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), np.asarray(image))
        exif = image.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif[0x010F], exif[0x0110], exif[0x8298]) == ('Maker', 'Model', 'Copyright Jane Doe')
        camera, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert camera[0x829A] == pytest.approx(0.008)
    assert camera[0x9003] == '2024:05:06 07:08:09'
    assert camera[0x927C] == b'\1\2\3'
    if suffix != 'tif':  # says its size in tags of its own
        assert (camera[0xA002], camera[0xA003]) == (16, 40)
    assert place[1] == 'N'
    assert tuple(map(float, place[2])) == (47.0, 30.0, 12.5)
    again = restore(tmp_path / f'y.{suffix}', tmp_path / f'z.{suffix}')
    assert again.pixels.shape == (40, 16, 3)


def test_each_page_of_a_tiff_keeps_its_own(tmp_path):
    pages = [Image.fromarray(pixels()), Image.fromarray(pixels(9))]
    blocks = []
    for number, page in enumerate(pages):
        exif = exif_block(1)
        exif.get_ifd(0x8769)[0x829A] = 0.5 + number
        blocks.append(exif.tobytes())
        page.save(tmp_path / f'{number}.tif', exif=blocks[-1], dpi=(100 + number, 100 + number))
    found = [read_picture(tmp_path / f'{number}.tif') for number in range(2)]
    rows = [Rows(one.encoding, *one.pixels.shape[:2], [one.pixels]) for one in found]
    write_pictures(tmp_path / 'x.tif', rows, None, 1000)
    with Image.open(tmp_path / 'x.tif') as image:
        for number in range(2):
            image.seek(number)
            assert image.info['dpi'] == (100 + number, 100 + number)
            assert image.getexif().get_ifd(0x8769)[0x829A] == 0.5 + number
            np.testing.assert_array_equal(np.asarray(image), pixels(8 + number))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_xmp_is_carried_over_and_upright(tmp_path, suffix):
    options = {'tiffinfo': {700: XMP}} if suffix == 'tif' else {'xmp': XMP}
    if suffix == 'png':
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt('XML:com.adobe.xmp', XMP.decode())
        options = {'pnginfo': info}
    Image.fromarray(pixels()).save(tmp_path / f'x.{suffix}', **options)
    restore(tmp_path / f'x.{suffix}', tmp_path / f'y.{suffix}')
    with Image.open(tmp_path / f'y.{suffix}') as image:
        found = image.info.get('xmp', image.info.get('XML:com.adobe.xmp'))
        assert image.getexif().get(0x0112, 1) == 1
    found = found.encode() if isinstance(found, str) else found
    assert found == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'tif', 'bmp'])
@pytest.mark.parametrize('dpi', [(300, 300), (72, 72), (240, 120)])
def test_resolution_is_carried_over(tmp_path, suffix, dpi):
    Image.fromarray(pixels()).save(tmp_path / f'x.{suffix}', dpi=dpi)
    restore(tmp_path / f'x.{suffix}', tmp_path / f'y.{suffix}', 2)
    with Image.open(tmp_path / f'x.{suffix}') as before, Image.open(tmp_path / f'y.{suffix}') as after:
        assert tuple(map(float, after.info['dpi'])) == pytest.approx(tuple(map(float, before.info['dpi'])))
        assert tuple(map(float, after.info['dpi'])) == pytest.approx(dpi, rel=1e-3)


def test_other_units_of_resolution(tmp_path):
    tifffile.imwrite(tmp_path / 'x.tif', pixels(), photometric='rgb', resolution=(118, 59), resolutionunit='centimeter')
    assert restore(tmp_path / 'x.tif', tmp_path / 'y.tif').encoding.metadata.resolution == Resolution(118, 59, 'cm')
    with tifffile.TiffFile(tmp_path / 'y.tif') as file:
        assert file.pages.first.resolution == (118, 59)
        assert file.pages.first.resolutionunit == 3
    Image.fromarray(pixels()).save(tmp_path / 'x.jpg')
    data = bytearray((tmp_path / 'x.jpg').read_bytes())
    for unit, wanted in ((0, 'none'), (2, 'cm')):
        data[13:18] = struct.pack('>BHH', unit, 4, 3)
        (tmp_path / 'x.jpg').write_bytes(data)
        assert restore(tmp_path / 'x.jpg', tmp_path / 'y.jpg').encoding.metadata.resolution == Resolution(4, 3, wanted)
        assert (tmp_path / 'y.jpg').read_bytes()[13:18] == data[13:18]


def test_resolution_of_a_turned_picture_is_turned(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / 'x.jpg', exif=exif_block(6), dpi=(240, 120))
    restore(tmp_path / 'x.jpg', tmp_path / 'y.jpg')
    with Image.open(tmp_path / 'y.jpg') as image:
        assert image.info['dpi'] == (120, 240)


CHUNKS = {
    b'gAMA': struct.pack('>I', 100000),
    b'cHRM': struct.pack('>8I', 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000),
    b'sRGB': b'\0',
    b'cICP': bytes((9, 16, 0, 1)),
    b'cLLI': struct.pack('>2I', 10_000_000, 4_000_000),
    b'mDCV': bytes(range(24)),
}


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('name', CHUNKS)
def test_chunks_that_say_how_a_png_looks_are_kept(tmp_path, name, dtype):
    write_rows(tmp_path / 'x.png', read_blank(tmp_path), 8, 20, [pixels().astype(dtype)])
    data = (tmp_path / 'x.png').read_bytes()
    chunk = struct.pack('>I', len(CHUNKS[name])) + name + CHUNKS[name]
    chunk += struct.pack('>I', zlib.crc32(chunk[4:]))
    (tmp_path / 'x.png').write_bytes(data[:33] + chunk + data[33:])
    restore(tmp_path / 'x.png', tmp_path / 'y.png', 2)
    with open(tmp_path / 'y.png', 'rb') as stream:
        found = {kind: stream.read(length) for kind, length in png_chunks(stream)}
        names = list(found)
    assert found[name] == CHUNKS[name]
    assert names.index(name) < names.index(b'IDAT')


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_how_an_avif_looks_is_told_to_its_png(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / 'x.avif')
    assert not read_picture(tmp_path / 'x.avif').encoding.metadata.png  # sRGB, as of a PNG that says nothing
    data = bytearray((tmp_path / 'x.avif').read_bytes())
    place = data.index(b'colrnclx') + 8
    data[place : place + 4] = struct.pack('>HH', 9, 16)
    (tmp_path / 'x.avif').write_bytes(data)
    assert restore(tmp_path / 'x.avif', tmp_path / 'y.png').encoding.metadata.png == ((b'cICP', bytes((9, 16, 0, 1))),)
    assert read_picture(tmp_path / 'y.png').encoding.metadata.png == ((b'cICP', bytes((9, 16, 0, 1))),)


def read_blank(folder):
    Image.fromarray(pixels()).save(folder / 'blank.png')
    return read_picture(folder / 'blank.png').encoding


@pytest.mark.parametrize(
    'extra', [{}, {'icc_profile': ICC}, {'exif': exif_block(1)}, {'xmp': XMP.replace(b'"6"', b'"1"')}]
)
@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('lossless', [True, False])
def test_webp_stays_lossless_whatever_chunks_come_first(tmp_path, extra, channels, lossless):
    stored = np.random.default_rng(0).integers(0, 256, (32, 40, channels), dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / 'x.webp', lossless=lossless, exact=True, **extra)
    found = read_picture(tmp_path / 'x.webp')
    assert found.encoding.lossless == lossless
    whole = found.pixels if found.alpha is None else np.dstack([found.pixels, found.alpha])
    write_rows(tmp_path / 'y.webp', found.encoding, 32, 40, [whole])
    with Image.open(tmp_path / 'y.webp') as image:
        again = np.asarray(image)
        assert image.info.get('icc_profile') == extra.get('icc_profile')
    assert np.array_equal(again, whole) == lossless
    if lossless:
        np.testing.assert_array_equal(again, stored)


@pytest.mark.parametrize('lossless', [True, False])
def test_a_chunk_of_another_kind_before_the_picture(tmp_path, lossless):
    Image.fromarray(pixels()).save(tmp_path / 'x.webp', lossless=lossless, icc_profile=ICC)
    data = (tmp_path / 'x.webp').read_bytes()
    odd = b'ODD \5\0\0\0VP8L!\0'  # looks like a lossless picture, and is none
    changed = data[:30] + odd + data[30:]
    (tmp_path / 'x.webp').write_bytes(changed[:4] + struct.pack('<I', len(changed) - 8) + changed[8:])
    assert read_picture(tmp_path / 'x.webp').encoding.lossless == lossless


@pytest.mark.parametrize('order', ['<', '>'])
def test_damaged_exif_is_left_out(order):
    block = exif_block().tobytes().removeprefix(b'Exif\0\0')
    assert upright_exif(block, 16, 40) is not None
    rng = np.random.default_rng(0)
    for size in rng.integers(0, len(block), 60):
        upright_exif(block[:size], 16, 40)  # raises nothing
    assert upright_exif(struct.pack(f'{order}2sHI', b'II' if order == '<' else b'MM', 42, 2**31), 1, 1) is None


def test_a_thumbnail_of_the_old_picture_is_left_out():
    main = struct.pack('<HHHIHH', 1, 0x0112, 3, 1, 6, 0) + struct.pack('<I', 26)
    thumbnail = struct.pack('<HHHIHHI', 1, 0x0103, 3, 1, 6, 0, 0)
    found = upright_exif(struct.pack('<2sHI', b'II', 42, 8) + main + thumbnail, 16, 40)
    assert found[18:20] == b'\1\0'
    assert found[22:26] == bytes(4)


@pytest.mark.skipif(not CASES.is_dir(), reason='the sample files are not on this machine')
@pytest.mark.parametrize('name', ['ll.webp', 'll_icc.webp', 'll_rgba_icc.webp'])
def test_sample_files(name):
    assert read_picture(CASES / name).encoding.lossless
