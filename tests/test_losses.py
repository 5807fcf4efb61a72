"""The loss terms: values by hand, gradients by finite differences, means over processes."""

from __future__ import annotations

import math

import pytest
import torch
from basicsr.losses import build_loss
from tiny import run_python

from basicsr_classpruning.losses.classpruning_loss import (
    ClassificationLoss,
    ComputeBudgetLoss,
    DistillationLoss,
    ErrorRatioLoss,
    batch_mean,
)


def random_probabilities(images: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.softmax(torch.randn(images, classes, generator=generator, dtype=torch.double), 1).requires_grad_()


def test_all_are_registered():
    assert isinstance(build_loss({'type': 'ComputeBudgetLoss', 'target': 0.6, 'loss_weight': 2.0}), ComputeBudgetLoss)
    for name in ('ClassificationLoss', 'DistillationLoss', 'ErrorRatioLoss'):
        assert type(build_loss({'type': name})).__name__ == name


def test_budget_is_the_squared_relative_distance_from_the_target():
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]])  # mean: 0.75, 0.25
    costs = torch.tensor([0.4, 1.0])  # expected: 0.55
    loss = ComputeBudgetLoss(target=0.5, loss_weight=3.0)(probabilities, costs)
    assert float(loss) == pytest.approx(3 * (0.05 / 0.5) ** 2, rel=1e-5)


def test_budget_pulls_towards_the_target_from_both_sides():
    costs = torch.tensor([0.2, 1.0])
    for target, sign in ((0.3, 1), (0.9, -1)):
        logits = torch.zeros(4, 2, requires_grad=True)
        ComputeBudgetLoss(target)(torch.softmax(logits, 1), costs).backward()
        assert torch.sign(logits.grad[:, 1]).unique().tolist() == [sign]


@pytest.mark.parametrize('target', [0, -0.1, 1.01])
def test_budget_refuses_impossible_targets(target):
    with pytest.raises(ValueError, match='target'):
        ComputeBudgetLoss(target)


@pytest.mark.parametrize(
    ('probabilities', 'value'),
    [
        ([[1 / 3, 1 / 3, 1 / 3]], 1.0),  # unsure; all classes in use
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 0.0),  # sure; all in use
        ([[1.0, 0.0, 0.0]], 0.6),  # sure; two classes lack 0.1 each of the floor 0.3 / 3, times three classes
        ([[0.5, 0.5, 0.0]], 0.5 + 0.3),  # |½ − ½| + |½ − 0| + |½ − 0| = 1 of 2; one class lacks 0.1, times three
    ],
)
def test_classification_by_hand(probabilities, value):
    assert float(ClassificationLoss(floor=0.3)(torch.tensor(probabilities))) == pytest.approx(value, abs=1e-6)


def test_classification_weighs_its_parts():
    probabilities = torch.tensor([[0.5, 0.5, 0.0]])
    loss = ClassificationLoss(certainty_weight=2.0, variety_weight=5.0, floor=0.3, loss_weight=10.0)
    assert float(loss(probabilities)) == pytest.approx(10 * (2 * 0.5 + 5 * 0.3), rel=1e-5)


def test_classification_of_one_candidate_is_nothing():
    probabilities = torch.ones(3, 1, requires_grad=True)
    loss = ClassificationLoss()(probabilities)
    loss.backward()
    assert float(loss.detach()) == 0


def test_classification_refuses_an_impossible_floor():
    with pytest.raises(ValueError, match='floor'):
        ClassificationLoss(floor=1.5)


def test_distillation_is_the_mean_absolute_difference_and_leaves_the_teacher_alone():
    output, teacher = torch.zeros(1, 1, 1, 2, requires_grad=True), torch.tensor([[[[1.0, -3.0]]]], requires_grad=True)
    loss = DistillationLoss(loss_weight=0.5)(output, teacher)
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert teacher.grad is None
    assert output.grad.flatten().tolist() == [-0.25, 0.25]


def test_ratios_by_hand():
    # One image of two parts, two candidates; both areas, of up to 2x2 and of up to 8x8 parts, are the whole image.
    predicted = torch.tensor([[[[3.0, 5.0]], [[2.0, 2.0]]]])
    errors = ErrorRatioLoss.unit * torch.tensor([[[[2.0, 4.0]], [[1.0, 3.0]]]])
    parts = sum(math.log(p) + e / p for p, e in ((3, 2), (5, 4), (2, 1), (2, 3))) / 4
    whole = sum(math.log(p) + e / p for p, e in ((4, 3), (2, 2))) / 2
    ratio = (math.log(4 / 2) - math.log(3 / 2)) ** 2
    wanted = 2 * (parts + whole + 3 * 2 * ratio)
    assert float(ErrorRatioLoss(2.0)(predicted, errors)) == pytest.approx(wanted, rel=1e-5)


def test_ratios_of_one_candidate_are_none():
    predicted, errors = torch.full((1, 1, 1, 1), 4.0), ErrorRatioLoss.unit * torch.ones(1, 1, 1, 1)
    assert float(ErrorRatioLoss()(predicted, errors)) == pytest.approx(2 * (math.log(4) + 1 / 4), rel=1e-5)


def test_ratios_are_least_at_the_truth_whatever_its_size():
    truth = torch.rand(2, 3, 8, 8, dtype=torch.double) + 0.5  # no candidate's is the greatest everywhere
    for size in (1e-3, 1.0, 1e2):
        logs = (size * truth).log().requires_grad_()
        ErrorRatioLoss()(logs.exp(), size * truth * ErrorRatioLoss.unit).backward()
        torch.testing.assert_close(logs.grad, torch.zeros_like(logs), rtol=0, atol=1e-9)
        best = float(ErrorRatioLoss()(size * truth, size * truth * ErrorRatioLoss.unit))
        for step in (torch.randn_like(truth), torch.ones_like(truth)):
            worse = float(ErrorRatioLoss()((logs.detach() + 0.1 * step).exp(), size * truth * ErrorRatioLoss.unit))
            assert worse > best + 1e-3


def test_ratios_count_alike_in_images_of_all_strengths():
    errors = torch.rand(1, 3, 4, 4, dtype=torch.double) + 0.5
    gradients = []
    for size in (1e-3, 10.0):
        logs = (1.3 * size * torch.ones_like(errors)).log().requires_grad_()
        ErrorRatioLoss()(logs.exp(), size * errors * ErrorRatioLoss.unit).backward()
        gradients.append(logs.grad)
    torch.testing.assert_close(*gradients)


def test_ratios_where_the_dense_network_is_the_truth_ask_for_no_infinite_one():
    errors = ErrorRatioLoss.unit * torch.tensor([[3.0, 1.0, 0.0]])[:, :, None, None]
    losses = [float(ErrorRatioLoss()(torch.tensor([[3.0, 1.0, last]])[:, :, None, None], errors))
              for last in (0.01, 0.02, 0.1)]  # fmt: skip
    assert losses == sorted(losses)
    assert math.isfinite(losses[0])
    nothing = ErrorRatioLoss()(torch.full((1, 3, 2, 2), 1e-9), torch.zeros(1, 3, 2, 2))
    assert math.isfinite(float(nothing))


@pytest.mark.parametrize('classes', [2, 3, 5])
def test_gradients_equal_finite_differences(classes):
    probabilities = random_probabilities(4, classes)
    costs = torch.linspace(0.3, 1.0, classes, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda p: ComputeBudgetLoss(0.6)(p, costs), probabilities)
    assert torch.autograd.gradcheck(ClassificationLoss(), probabilities)
    errors = torch.rand(4, classes, dtype=torch.double)

    maps = errors[:, :, None, None].expand(-1, -1, 2, 1) * ErrorRatioLoss.unit
    predicted = torch.rand(4, classes, 2, 1, dtype=torch.double).flip(1).cumsum(1).flip(1) + 0.5
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: ErrorRatioLoss()(e, maps), predicted)


def test_batch_mean_alone_is_the_mean():
    values = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(batch_mean(values), values.mean(0))


_TWO_PROCESSES = """
import multiprocessing
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from basicsr_classpruning.losses.classpruning_loss import ClassificationLoss, ComputeBudgetLoss

COSTS = torch.tensor([0.3, 0.6, 1.0])
INPUT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def loss_and_gradient(net, x):
    probabilities = torch.softmax(net(x), 1)
    loss = ComputeBudgetLoss(0.3)(probabilities, COSTS) + ClassificationLoss(floor=1.0)(probabilities)
    loss.backward()
    return [float(loss.detach()), *next(net.parameters()).grad.flatten().tolist()]


def work(rank, file, results):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    results.put(loss_and_gradient(DistributedDataParallel(linear()), INPUT[rank::2]))


context = multiprocessing.get_context('fork')  # the imports above are not repeated
results = context.SimpleQueue()
processes = [context.Process(target=work, args=(rank, sys.argv[1], results)) for rank in range(2)]
for process in processes:
    process.start()
found = [results.get() for _ in processes]
for process in processes:
    process.join()
wanted = loss_and_gradient(linear(), INPUT)
for values in found:
    torch.testing.assert_close(torch.tensor(values), torch.tensor(wanted))
"""


def test_two_processes_have_the_loss_and_gradient_of_one_with_all_images(tmp_path):
    script = tmp_path / 'two.py'
    script.write_text(_TWO_PROCESSES)
    done = run_python(str(script), str(tmp_path / 'rendezvous'))
    assert done.returncode == 0, done.stderr
