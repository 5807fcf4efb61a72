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
    RoutingLoss,
    batch_mean,
)


def random_probabilities(images: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.softmax(torch.randn(images, classes, generator=generator, dtype=torch.double), 1).requires_grad_()


def test_all_are_registered():
    assert isinstance(build_loss({'type': 'ComputeBudgetLoss', 'target': 0.6, 'loss_weight': 2.0}), ComputeBudgetLoss)
    for name in ('ClassificationLoss', 'DistillationLoss', 'RoutingLoss'):
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


def test_routing_by_hand():
    price = 2.0
    loss = RoutingLoss(low=price, high=price)
    scores = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    errors = torch.tensor([[3.0, 1.0], [5.0, 5.0]])  # excess: 2, 0 and 0, 0; mean of the cheapest: 1
    costs = torch.tensor([0.5, 1.0])
    sure = 1 / (1 + math.exp(0 - price * 0.5 - (1 - price * 1.0)))  # of the cheaper class, second image: e^−1 : e^−1
    assert sure == pytest.approx(0.5)
    cheap = 1 / (1 + math.exp(-price * 1.0 + price * 0.5))  # first image: e^−1 : e^−2
    first = cheap * (2 / 1 + price * 0.5) + (1 - cheap) * (0 + price * 1.0)
    second = sure * price * 0.5 + (1 - sure) * price * 1.0
    assert float(loss(scores, errors, costs)) == pytest.approx((first + second) / 2 / (1 + price), rel=1e-5)
    assert float(loss.unit) == 1.0


def test_routing_keeps_a_running_mean_of_the_excess():
    loss = RoutingLoss(momentum=0.9)
    costs = torch.tensor([0.5, 1.0])
    for excess in (4.0, 2.0):
        loss(torch.zeros(1, 2), torch.tensor([[excess, 0.0]]), costs)
    assert float(loss.unit) == pytest.approx(0.9 * 4 + 0.1 * 2)


def test_routing_does_not_depend_on_the_unit_of_the_errors():
    scores, errors = torch.randn(5, 3), torch.rand(5, 3)
    costs = torch.tensor([0.3, 0.5, 1.0])
    values = []
    for factor in (1.0, 1e-4):
        torch.manual_seed(0)
        values.append(float(RoutingLoss()(scores, factor * errors, costs)))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_routing_teaches_the_scores_the_errors():
    torch.manual_seed(0)
    errors = torch.tensor([[4.0, 1.0, 0.0], [0.1, 0.05, 0.0]])
    costs = torch.tensor([0.25, 0.5, 1.0])
    scores = torch.zeros(2, 3, requires_grad=True)
    loss, optimizer = RoutingLoss(), torch.optim.Adam([scores], 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        loss(scores, errors, costs).backward()
        optimizer.step()
    easy, hard = scores.detach()[1], scores.detach()[0]
    assert (easy - costs).argmax() == 0
    assert (hard - costs).argmax() == 2


@pytest.mark.parametrize('classes', [2, 3, 5])
def test_gradients_equal_finite_differences(classes):
    probabilities = random_probabilities(4, classes)
    costs = torch.linspace(0.3, 1.0, classes, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda p: ComputeBudgetLoss(0.6)(p, costs), probabilities)
    assert torch.autograd.gradcheck(ClassificationLoss(), probabilities)
    errors = torch.rand(4, classes, dtype=torch.double)

    def routing(scores: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return RoutingLoss().double()(scores, errors, costs)

    assert torch.autograd.gradcheck(routing, torch.randn(4, classes, dtype=torch.double, requires_grad=True))


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
