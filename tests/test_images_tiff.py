"""TIFF in its flavours: each read to the last bit, or refused by what it is."""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.images.picture import Encoding, Picture
from basicsr_classpruning.images.reading import open_picture, read_picture
from basicsr_classpruning.images.writing import write_picture

HEIGHT, WIDTH = 37, 53
CASES = Path(__file__).parents[2] / 'shared' / 'cases'


def values(channels=3, dtype=np.uint8, height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return rng.random((height, width, channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def pack_bits(rows: np.ndarray, bits: int) -> bytes:
    """Values ``(h, n)`` of some bits each, every row filled up to whole bytes."""
    single = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def pack_literally(data: bytes, pitch: int) -> bytes:
    """PackBits without any repetition."""
    parts = []
    for start in range(0, len(data), pitch):
        row = data[start : start + pitch]
        parts += [bytes([len(row[i : i + 128]) - 1]) + row[i : i + 128] for i in range(0, pitch, 128)]
    return b''.join(parts)


def difference(block: np.ndarray, predictor: int) -> np.ndarray:
    """What predictor 2 or 3 makes of ``(h, w, C)`` samples."""
    if predictor == 2:
        whole = block.view(f'u{block.dtype.itemsize}')
        return np.concatenate([whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1)
    if predictor == 3:
        size = block.dtype.itemsize
        high_first = block.astype(block.dtype.newbyteorder('>')).view(np.uint8).reshape(len(block), -1, size)
        planes = high_first.transpose(0, 2, 1).reshape(len(block), -1, block.shape[2])
        return np.concatenate([planes[:, :1], planes[:, 1:] - planes[:, :-1]], axis=1)
    return block


def write_tiff(path, samples, order='<', bits=None, big=False, strip=10, tile=None, separate=False, compression=1,
               predictor=1, tags=()):  # fmt: skip
    """A TIFF writer for the tests that knows every layout: ``samples`` (H, W, C) go in as they are."""
    bits = bits or samples.dtype.itemsize * 8
    height, width, channels = samples.shape
    planes = [samples[..., i : i + 1] for i in range(channels)] if separate else [samples]
    blocks = []
    for plane in planes:
        for top in range(0, height, tile or strip):
            if tile:
                rows = plane[top : top + tile]
                for left in range(0, width, tile):
                    block = rows[:, left : left + tile]
                    missing = [(0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)]
                    blocks.append(np.pad(block, missing, mode='edge'))
            else:
                blocks.append(plane[top : top + strip])
    packed = []
    for block in blocks:
        coded = difference(np.ascontiguousarray(block), predictor)
        pitch = (block.shape[1] * block.shape[2] * bits + 7) // 8
        if bits % 8:
            data = pack_bits(coded.reshape(len(block), -1), bits)
        else:
            data = coded.astype(coded.dtype.newbyteorder(order)).tobytes()
        if compression in (8, 32946):
            data = zlib.compress(data)
        elif compression == 34925:
            data = lzma.compress(data)
        elif compression == 32773:
            data = pack_literally(data, pitch)
        packed.append(data)
    kind = 3 if np.issubdtype(samples.dtype, np.floating) else 1
    start = 16 if big else 8
    places = list(np.cumsum([start, *(len(data) for data in packed)]))[:-1]
    known = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [2 if channels >= 3 else 1]), 277: (3, [channels]), 284: (3, [2 if separate else 1]),
        317: (3, [predictor]), 339: (3, [kind] * channels),
        (324 if tile else 273): (4, places), (325 if tile else 279): (4, [len(data) for data in packed]),
    }  # fmt: skip
    known |= {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [strip])}
    if channels in (2, 4):
        known[338] = (3, [2])
    known |= dict(tags)
    known = {code: entry for code, entry in known.items() if entry is not None}
    body = b''.join(packed)
    body += b'\0' * (len(body) % 2)
    directory, extra = [], b''
    room = 8 if big else 4
    after = start + len(body) + (8 + 20 * len(known) + 8 if big else 2 + 12 * len(known) + 4)
    for code, (kind, numbers) in sorted(known.items()):
        data = struct.pack(f'{order}{len(numbers)}{ ({3: "H", 4: "I"}[kind]) }', *map(int, numbers))
        if len(data) > room:
            place = struct.pack(f'{order}{"Q" if big else "I"}', after + len(extra))
            extra += data + b'\0' * (len(data) % 2)
            data = place
        directory.append(
            struct.pack(f'{order}HH{"Q" if big else "I"}', code, kind, len(numbers)) + data.ljust(room, b'\0')
        )
    mark = b'II' if order == '<' else b'MM'
    where = start + len(body)
    head = mark + (struct.pack(f'{order}HHHQ', 43, 8, 0, where) if big else struct.pack(f'{order}HI', 42, where))
    count = struct.pack(f'{order}{"Q" if big else "H"}', len(directory))
    path.write_bytes(head + body + count + b''.join(directory) + bytes(8 if big else 4) + extra)


LAYOUTS = {
    'strips': {},
    'one strip': {'strip': HEIGHT},
    'big-endian': {'order': '>'},
    'BigTIFF': {'big': True},
    'BigTIFF, big-endian': {'big': True, 'order': '>'},
    'tiles': {'tile': 16},
    'tiles, separate': {'tile': 16, 'separate': True},
    'separate': {'separate': True},
    'separate, big-endian': {'separate': True, 'order': '>'},
    'Deflate': {'compression': 8},
    'old Deflate': {'compression': 32946},
    'LZMA': {'compression': 34925},
    'PackBits': {'compression': 32773},
    'Deflate, differences': {'compression': 8, 'predictor': 2},
    'Deflate, differences, big-endian': {'compression': 8, 'predictor': 2, 'order': '>'},
    'Deflate, differences, separate tiles': {'compression': 8, 'predictor': 2, 'tile': 32, 'separate': True},
    'Deflate, float differences': {'compression': 8, 'predictor': 3},
    'Deflate, float differences, big-endian tiles': {'compression': 8, 'predictor': 3, 'order': '>', 'tile': 16},
}


@pytest.mark.parametrize(
    ('layout', 'dtype'),
    [
        (layout, dtype)
        for layout, options in LAYOUTS.items()
        for dtype in (np.uint8, np.uint16, np.float16, np.float32)
        if options.get('predictor') != 3 or np.issubdtype(dtype, np.floating)
    ],
)
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_layouts_of_samples(tmp_path, layout, dtype, channels):
    is_float = np.issubdtype(dtype, np.floating)
    wanted = values(channels, dtype)
    write_tiff(tmp_path / 'x.tif', wanted, **LAYOUTS[layout])
    found = read_picture(tmp_path / 'x.tif')
    colours = channels - (channels in (2, 4))
    assert found.pixels.dtype == (np.float32 if is_float else dtype)
    np.testing.assert_array_equal(found.pixels, wanted[..., :colours].astype(found.pixels.dtype))
    if channels > colours:
        np.testing.assert_array_equal(found.alpha, wanted[..., colours].astype(found.pixels.dtype))
    else:
        assert found.alpha is None
    write_picture(tmp_path / 'y.tif', found)  # and what is written is the same again
    again = read_picture(tmp_path / 'y.tif')
    np.testing.assert_array_equal(again.pixels, found.pixels)
    assert again.pixels.dtype == found.pixels.dtype


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('photometric', [0, 1])
@pytest.mark.parametrize('compression', [1, 8, 32773])
def test_white_is_zero_and_few_bits(tmp_path, bits, photometric, compression):
    stored = values(1, np.uint16) >> (16 - bits)
    stored = stored if bits == 16 else stored.astype(np.uint8)
    white = 65535 if bits == 16 else 255
    tags = {262: (3, [photometric])}
    write_tiff(tmp_path / 'x.tif', stored, bits=bits, tags=tags, compression=compression)
    most = 2**bits - 1
    shown = stored.astype(int) if photometric == 1 else most - stored.astype(int)
    np.testing.assert_array_equal(read_picture(tmp_path / 'x.tif').pixels, shown * white // most)


def test_white_is_zero_as_pillow_sees_it(tmp_path):
    write_tiff(tmp_path / 'x.tif', values(1), tags={262: (3, [0])})
    with Image.open(tmp_path / 'x.tif') as image:
        np.testing.assert_array_equal(read_picture(tmp_path / 'x.tif').pixels[..., 0], np.asarray(image))


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
@pytest.mark.parametrize('step', [257, 256, 1])
def test_palettes_of_8_bit(tmp_path, bits, step):
    colours = values(3, np.uint8, 1, 2**bits)[0]
    stored = values(1, np.uint16).astype(np.uint16) >> (16 - bits)
    tags = {262: (3, [3]), 320: (3, (colours.T.astype(int) * step).ravel())}
    write_tiff(tmp_path / 'x.tif', stored.astype(np.uint8), bits=bits, tags=tags)
    found = read_picture(tmp_path / 'x.tif').pixels
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, colours[stored[..., 0]])


def test_palettes_of_16_bit_keep_them(tmp_path):
    colours = values(3, np.uint16, 1, 256)[0]
    stored = values(1)
    write_tiff(tmp_path / 'x.tif', stored, tags={262: (3, [3]), 320: (3, colours.T.ravel())})
    np.testing.assert_array_equal(read_picture(tmp_path / 'x.tif').pixels, colours[stored[..., 0]])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_colours_multiplied_by_alpha_are_divided(tmp_path, dtype):
    most = np.iinfo(dtype).max
    alpha = values(1, dtype)
    alpha[:3] = 0
    stored = np.concatenate([np.minimum(values(3, dtype), alpha), alpha], axis=2)
    write_tiff(tmp_path / 'x.tif', stored, tags={338: (3, [1])})
    found = read_picture(tmp_path / 'x.tif')
    np.testing.assert_array_equal(found.alpha, alpha[..., 0])
    exact = stored[..., :3].astype(float) * most / np.maximum(alpha, 1)
    assert np.abs(found.pixels - exact)[3:].max() <= 0.5
    assert not found.pixels[:3].any()
    back = np.rint(found.pixels.astype(float) * alpha / most).astype(dtype)
    np.testing.assert_array_equal(back, stored[..., :3])  # nothing was lost


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation):
    stored = values(3, np.uint16)
    tags = {274: (3, [orientation]), 282: None, 283: None}
    write_tiff(tmp_path / 'x.tif', stored, tags=tags)
    found = read_picture(tmp_path / 'x.tif')
    turned = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: np.rot90(stored, 2).transpose(1, 0, 2), 8: np.rot90(stored),
    }  # fmt: skip
    np.testing.assert_array_equal(found.pixels, turned[orientation])
    write_picture(tmp_path / 'y.tif', found)
    np.testing.assert_array_equal(read_picture(tmp_path / 'y.tif').pixels, turned[orientation])


def test_bits_in_reversed_order(tmp_path):
    stored = values(1) >> 7
    write_tiff(tmp_path / 'x.tif', stored, bits=1, strip=HEIGHT)
    data = bytearray((tmp_path / 'x.tif').read_bytes())
    pixels = HEIGHT * ((WIDTH + 7) // 8)
    data[8 : 8 + pixels] = bytes(int(f'{byte:08b}'[::-1], 2) for byte in data[8 : 8 + pixels])
    (tmp_path / 'x.tif').write_bytes(data)
    wrong = read_picture(tmp_path / 'x.tif').pixels
    write_tiff(tmp_path / 'y.tif', stored, bits=1, strip=HEIGHT, tags={266: (3, [2])})
    again = bytearray((tmp_path / 'y.tif').read_bytes())
    again[8 : 8 + pixels] = data[8 : 8 + pixels]
    (tmp_path / 'y.tif').write_bytes(again)
    np.testing.assert_array_equal(read_picture(tmp_path / 'y.tif').pixels, stored * 255)
    assert (wrong != stored * 255).any()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_lzw_of_another_writer(tmp_path, dtype, channels):
    """OpenCV writes LZW with differences, and does not say that its fourth sample is alpha."""
    wanted = values(channels, dtype)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(tmp_path / 'x.tif'), wanted[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    with tifffile.TiffFile(tmp_path / 'x.tif') as file:
        assert file.pages.first.compression == 5
    found = read_picture(tmp_path / 'x.tif')
    np.testing.assert_array_equal(found.pixels, wanted[..., :3])
    if channels == 4:
        np.testing.assert_array_equal(found.alpha, wanted[..., 3])


@pytest.mark.parametrize('compression', ['group3', 'group4', 'tiff_ccitt', 'tiff_lzw', 'packbits'])
def test_single_bits_of_another_writer(tmp_path, compression):
    wanted = values(1)[..., 0] > 127
    Image.fromarray(wanted).save(tmp_path / 'x.tif', compression=compression)
    np.testing.assert_array_equal(read_picture(tmp_path / 'x.tif').pixels[..., 0], wanted * np.uint8(255))


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_jpeg_in_tiff(tmp_path, mode):
    smooth = cv2.GaussianBlur(values(), (9, 9), 3)
    Image.fromarray(smooth).convert(mode).save(tmp_path / 'x.tif', compression='jpeg', quality=90)
    with Image.open(tmp_path / 'x.tif') as image:
        wanted = np.asarray(image.convert(mode)).reshape(HEIGHT, WIDTH, -1)
    found = read_picture(tmp_path / 'x.tif').pixels
    np.testing.assert_array_equal(found, wanted)
    assert np.abs(found.astype(int) - np.asarray(Image.fromarray(smooth).convert(mode)).reshape(found.shape)).max() < 40


REFUSED = {
    'CMYK': (values(4), {}, {262: (3, [5]), 338: None}, 'CMYK'),
    'CIELAB': (values(3), {}, {262: (3, [8])}, 'CIELAB'),
    'YCbCr': (values(3), {}, {262: (3, [6])}, 'YCbCr'),
    'raw camera samples': (values(1), {}, {262: (3, [32803])}, "a camera's raw samples"),
    'no photometric interpretation': (values(3), {}, {262: None}, 'no photometric interpretation'),
    'signed': (values(1, np.uint16), {}, {339: (3, [2])}, '16-bit signed samples'),
    '32 bit': (values(1, np.uint32), {}, {}, '32-bit unsigned samples'),
    '12 bit': (values(1, np.uint16) >> 4, {'bits': 12}, {}, '12-bit unsigned samples'),
    'float 64': (values(1, np.float64), {}, {}, '64-bit float samples'),
    'complex': (values(1, np.float32), {}, {339: (3, [6])}, '32-bit complex samples'),
    'floats up to 255': (values(3).astype(np.float32), {}, {}, 'float samples from 0 to 255'),
    'no numbers': (np.full((4, 4, 1), np.nan, np.float32), {}, {}, 'float samples from nan'),
    'mixed bits': (values(3), {}, {258: (3, [8, 8, 4])}, 'samples of different kinds'),
    'five samples': (values(5), {}, {}, '5 samples a pixel'),
    'unknown extra sample': (values(4), {}, {338: (3, [0])}, 'a sample more a pixel whose meaning it does not say'),
    'two extra samples of grey': (values(3), {}, {262: (3, [1])}, '3 samples a pixel, black is zero'),
    'wavelets': (values(3), {}, {259: (3, [34712])}, r'JPEG2000 compression \(34712\)'),
    'unknown compression': (values(3), {}, {259: (3, [60000])}, r'unknown compression \(60000\)'),
    'a volume': (values(3), {}, {32997: (4, [3])}, 'a volume of 3 layers'),
}  # fmt: skip


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_not_supported_is_named(tmp_path, kind):
    samples, layout, tags, named = REFUSED[kind]
    write_tiff(tmp_path / 'x.tif', samples, tags=tags, **layout)
    with pytest.raises(UserError, match=rf'x\.tif: a TIFF with {named}.*; ') as caught:
        read_picture(tmp_path / 'x.tif')
    assert '\n' not in str(caught.value)


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path):
    """A strip of 20 pixels that holds 200 MB of zeros is unpacked to 20 pixels."""
    write_tiff(tmp_path / 'x.tif', np.zeros((1, 20, 1), np.uint8), compression=8)
    data = zlib.compress(bytes(2 * 10**8))
    body = (tmp_path / 'x.tif').read_bytes()
    with tifffile.TiffFile(tmp_path / 'x.tif') as file:
        offset, size = (file.pages.first.tags[code].valueoffset for code in (273, 279))
    changed = bytearray(body + data)
    changed[offset : offset + 4] = struct.pack('<I', len(body))
    changed[size : size + 4] = struct.pack('<I', len(data))
    (tmp_path / 'x.tif').write_bytes(changed)
    import tracemalloc

    tracemalloc.start()
    found = read_picture(tmp_path / 'x.tif')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.pixels.any()
    assert peak < 5 * 10**6


def test_sizes_of_strips_and_tiles_are_bounded(tmp_path):
    write_tiff(tmp_path / 'x.tif', values(), tile=16, tags={322: (4, [100_000]), 323: (4, [100_000])})
    with pytest.raises(UserError, match='megapixels, above the limit'):
        read_picture(tmp_path / 'x.tif')
    write_tiff(tmp_path / 'y.tif', values(), tags={256: (4, [100_000]), 257: (4, [100_000])})
    with pytest.raises(UserError, match=r'100000 x 100000 is 10000\.0 megapixels'):
        read_picture(tmp_path / 'y.tif')


@pytest.mark.parametrize('layout', ['strips', 'tiles, separate', 'Deflate, differences', 'PackBits', 'BigTIFF'])
def test_damaged_files_are_one_error(tmp_path, layout):
    path = tmp_path / 'x.tif'
    write_tiff(path, values(3, np.uint16), **LAYOUTS[layout])
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for size in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r'x\.tif: '):
            read_picture(path)
    for _ in range(150):
        data = bytearray(whole)
        for position in len(data) - rng.integers(1, min(len(data), 500), rng.integers(1, 6)):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        message = error_of(path)
        assert message is None or ('x.tif: ' in message and '\n' not in message)


def error_of(path):
    try:
        read_picture(path, max_pixels=10**6)
    except UserError as error:
        return str(error)
    return None


def test_pages_are_read_one_by_one_and_thumbnails_left_out(tmp_path):
    first, second = values(3, np.uint16), values(1, np.uint8, 20, 30)
    with tifffile.TiffWriter(tmp_path / 'x.tif') as writer:
        writer.write(first, photometric='rgb', metadata=None)
        writer.write(values(3, np.uint8, 8, 8), photometric='rgb', subfiletype=1, metadata=None)
        writer.write(second[..., 0], photometric='minisblack', metadata=None)
    with open_picture(tmp_path / 'x.tif') as file:
        assert file.sizes == [(HEIGHT, WIDTH), (20, 30)]
        assert file.animation() is None
        found = list(file.pictures())
        assert '1 reduced cop' in file.note
    np.testing.assert_array_equal(found[0].pixels, first)
    np.testing.assert_array_equal(found[1].pixels, second)


@pytest.mark.skipif(not CASES.is_dir(), reason='the sample files are not on this machine')
def test_sample_files():
    for name in ('sep16.tif', 'f32.tif'):
        wanted = tifffile.imread(CASES / name)
        found = read_picture(CASES / name).pixels
        np.testing.assert_array_equal(found, wanted if name == 'f32.tif' else wanted.transpose(1, 2, 0))
    with open_picture(CASES / 'multi.tif') as file:
        np.testing.assert_array_equal([one.pixels for one in file.pictures()], tifffile.imread(CASES / 'multi.tif'))


def test_floats_are_written_to_the_last_bit(tmp_path):
    wanted = values(3, np.float32, 200)
    write_picture(tmp_path / 'x.tif', Picture(wanted, None, Encoding('TIFF')))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / 'x.tif'), wanted)
