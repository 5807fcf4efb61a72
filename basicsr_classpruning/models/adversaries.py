"""What a discriminator teaches the candidates, and how it learns itself.

A new adversarial objective is a class here, and a name in ``ADVERSARIES`` and in the schema of ``train.adversary``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Adversary(ABC):
    """A discriminator with its loss.

    Args:
        net: takes images ``(B, C, H, W)``; gives any tensor of predictions, large for real images.
        loss: BasicSR's ``GANLoss``, or one that is called as it is.
    """

    def __init__(self, net: nn.Module, loss: nn.Module) -> None:
        self.net = net
        self.loss = loss

    @abstractmethod
    def generator_term(self, fake: Tensor, real: Tensor) -> Tensor:
        """The loss of restored images ``(B, C, H, W)``, beside the clean ones."""

    @abstractmethod
    def discriminator_terms(self, fake: Tensor, real: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The discriminator's losses by name, one after the other: each is to be propagated before the next is made,
        as batch normalisation changes what the last one was made from."""


class Standard(Adversary):
    """Each image is judged by itself, as in SRGAN (Ledig et al., CVPR 2017) and BasicSR's SRGANModel."""

    def generator_term(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.loss(self.net(fake), True, is_disc=False)

    def discriminator_terms(self, fake: Tensor, real: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield 'l_d_real', self.loss(self.net(real), True, is_disc=True)
        yield 'l_d_fake', self.loss(self.net(fake), False, is_disc=True)


class Relativistic(Adversary):
    """Real images are to look more real than restored ones do on average, as in ESRGAN (Wang et al., ECCV workshops
    2018) and BasicSR's ESRGANModel."""

    def generator_term(self, fake: Tensor, real: Tensor) -> Tensor:
        of_real, of_fake = self.net(real).detach(), self.net(fake)
        less_real = self.loss(of_real - of_fake.mean(), False, is_disc=False)
        more_real = self.loss(of_fake - of_real.mean(), True, is_disc=False)
        return (less_real + more_real) / 2

    def discriminator_terms(self, fake: Tensor, real: Tensor) -> Iterator[tuple[str, Tensor]]:
        with torch.no_grad():
            of_fake = self.net(fake)
        of_real = self.net(real)
        yield 'l_d_real', self.loss(of_real - of_fake.mean(), True, is_disc=True) * 0.5
        of_fake = self.net(fake)
        yield 'l_d_fake', self.loss(of_fake - of_real.detach().mean(), False, is_disc=True) * 0.5


ADVERSARIES: dict[str, type[Adversary]] = {'standard': Standard, 'relativistic': Relativistic}
"""The adversarial objectives by the value of ``train.adversary``."""
