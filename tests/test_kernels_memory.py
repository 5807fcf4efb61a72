"""Memory of features is lent again, and never to two at once; bilinear enlargement is PyTorch's."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from basicsr_classpruning import kernels
from basicsr_classpruning.kernels import native
from basicsr_classpruning.kernels.enlargement import BilinearEnlargement, replace_bilinear
from basicsr_classpruning.kernels.memory import Pool
from basicsr_classpruning.kernels.tracing import trace

LARGE = (1, 4, 512, 1024)


def test_memory_comes_back_when_its_last_view_is_gone():
    pool = Pool()
    first = pool.empty(LARGE)
    place, view = first.data_ptr(), first[0, 1].flatten()
    del first
    assert pool.empty(LARGE).data_ptr() != place  # a view of it still lives
    del view
    assert place in {one.data_ptr() for one in [pool.empty(LARGE) for _ in range(2)]}
    assert pool.empty((3, 4)).shape == (3, 4)
    assert pool.empty(LARGE, torch.uint8).dtype == torch.uint8


def test_memory_is_never_lent_to_two_at_once():
    pool, wrong = Pool(), []

    def work(number: int) -> None:
        for _ in range(200):
            mine = pool.empty(LARGE)
            mine[0, 0, 0, :8] = number
            other = pool.empty(LARGE)
            other[0, 0, 0, :8] = -1
            if mine[0, 0, 0, 0] != number:
                wrong.append(number)
            del other

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_that_comes_back_while_some_is_taken_is_not_lent_twice():
    pool = Pool()
    places = [pool.empty(LARGE) for _ in range(2)]
    late = places.pop()
    place = late.data_ptr()
    del places

    class Interrupted(dict):
        def get(self, size):
            nonlocal late
            found = super().get(size)
            late = None  # its memory comes back here, as it may when garbage is collected
            return found

    pool._free = Interrupted(pool._free)
    lent = [pool.empty(LARGE) for _ in range(3)]
    assert place in {one.data_ptr() for one in lent}
    assert len({one.data_ptr() for one in lent}) == 3


def test_a_limited_amount_of_memory_is_kept():
    pool = Pool()
    for rows in range(64, 512, 8):
        pool.empty((64, 1, rows, 512))
    assert sum(size * len(kept) for size, kept in pool._free.items()) <= 2**29


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('shape', [(1, 3, 17, 40), (2, 1, 1, 9), (1, 5, 30, 2)])
def test_bilinear_enlargement_equals_torch(scale, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False)
    # PyTorch rounds places in the picture, which thirds are not free of, to single precision
    tolerance = 2e-6 if scale != 3 else 1e-7 * max(shape)
    torch.testing.assert_close(BilinearEnlargement(scale)(x), wanted, atol=tolerance, rtol=0)


class Enlarging(nn.Module):
    """Enlarges its input in one of several ways."""

    def __init__(self, **how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return F.interpolate(x, **self.how)


@pytest.mark.parametrize(
    ('how', 'replaced'),
    [
        ({'scale_factor': 2, 'mode': 'bilinear', 'align_corners': False}, True),
        ({'scale_factor': 2.0, 'mode': 'bilinear'}, True),
        ({'scale_factor': 2, 'mode': 'bilinear', 'align_corners': True}, False),
        ({'scale_factor': 2, 'mode': 'bilinear', 'antialias': True}, False),
        ({'scale_factor': 1.5, 'mode': 'bilinear'}, False),
        ({'scale_factor': 8, 'mode': 'bilinear'}, False),
        ({'scale_factor': (2, 3), 'mode': 'bilinear'}, False),
        ({'size': (18, 22), 'mode': 'bilinear'}, False),
        ({'scale_factor': 2, 'mode': 'nearest'}, False),
        ({'scale_factor': 2, 'mode': 'bicubic'}, False),
    ],
)
def test_only_what_is_the_same_is_replaced(how, replaced):
    graph, x = trace(Enlarging(**how)), torch.rand(1, 3, 9, 11)
    replace_bilinear(graph, [nn.Conv2d(3, 3, 3)])
    graph.recompile()
    assert replaced == any(isinstance(module, BilinearEnlargement) for module in graph.modules())
    torch.testing.assert_close(graph(x), F.interpolate(x, **how), atol=2e-6, rtol=0)


@pytest.mark.skipif(native.load() is None, reason='no compiled kernels')
def test_networks_enlarge_on_the_kernels():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Upsample(scale_factor=2, mode='bilinear')).eval()
    fast, x = kernels.accelerate(net, {}), torch.rand(1, 3, 20, 31)
    assert any(isinstance(module, BilinearEnlargement) for module in fast.modules())
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), atol=1e-5, rtol=0)
