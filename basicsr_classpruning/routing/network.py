"""A network that routes, as inference sees it: subnetworks, what chooses among them, and what they cost.

A ClassPruning network, a dense one (a ladder of one) and several dense networks of different width (a ladder of as
many) are all of them a ``RoutedNetwork``; what restores, compares or exports images asks for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from basicsr_classpruning.errors import UsageError
from basicsr_classpruning.once import Once
from basicsr_classpruning.routing.router import Router
from basicsr_classpruning.sizes import SizeRequirements, run_padded
from basicsr_classpruning.sparsity.macs import NetworkMacs, count_by_module
from basicsr_classpruning.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Subnetwork:
    """One candidate, or a dense network, as a plain network that restores every image alike."""

    name: str
    """The candidate, such as ``'2:4'``, or ``'dense'``."""
    make: Callable[[], nn.Module]
    """Makes ``net`` from the weights as they are now."""
    patterns: Mapping[str, Pattern]
    """Pattern of each layer that is sparse, by the layer's name in ``net``."""
    options: dict[str, Any]
    """``network_g`` of the plain network."""
    channels: int
    """Of the images that it takes."""
    sizes: SizeRequirements
    """Of the images that it takes."""
    runs_base: bool = True
    """Whether it is the base network with weights of its own: its layers have the names of the dense one's."""
    int8: bool = False
    """Whether layers of it multiply 8-bit integers."""
    _made: Once = field(default_factory=Once, repr=False, compare=False)

    @property
    def net(self) -> nn.Module:
        """Plain layers, zeros in place, eval mode; takes images ``(B, C, H, W)`` in [0, 1]. Kept until ``forget``."""
        return self._made.get('net', self.make)

    def forget(self) -> None:
        """Lets ``net`` be made anew: the weights have changed."""
        self._made.forget('net')

    def restore(self, x: Tensor) -> Tensor:
        """Restores images ``(B, C, H, W)`` of any size, padded where the network needs it."""
        return run_padded(self.net, x, self.sizes)

    def count_parameters(self) -> int:
        """Number of parameters, zeros of sparse layers left out."""
        zeros = (self.net.get_submodule(name).weight.eq(0).sum() for name in self.patterns)  # type: ignore[operator]
        return count_parameters(self.net) - int(sum(zeros))


@dataclass(frozen=True)
class ModelInfo:
    """What restoring images needs to know of a network. MACs are per input pixel: a tile's are in proportion to its
    size."""

    candidates: tuple[str, ...]
    """Sparsest to densest; empty for a dense network."""
    channels: int
    """Of the images; 1 is grey, 3 is RGB."""
    sizes: SizeRequirements
    macs_dense: float
    macs: tuple[float, ...]
    """One for each subnetwork, the classifier not included."""
    macs_classifier: float
    params_dense: int
    """Parameters of the dense base network."""
    params: tuple[int, ...]
    """Of each subnetwork, its zeros left out."""
    params_routed: int
    """Of everything that routing needs: all candidates, their zeros left out, and the classifier."""

    @property
    def scale(self) -> int:
        """Output side over input side."""
        return self.sizes.scale

    @property
    def costs(self) -> np.ndarray:
        """Routed costs ``(K,)``, the classifier's included, as fractions of the dense MACs."""
        return (np.array(self.macs) + self.macs_classifier) / self.macs_dense


@dataclass(frozen=True)
class RoutedNetwork:
    """Subnetworks from the sparsest to the densest, and the router that picks one of them for each image."""

    module: nn.Module
    """Holds all weights: what moves to a device, and whose parameters are counted."""
    subnetworks: tuple[Subnetwork, ...]
    dense: Subnetwork
    """The unpruned base network, whether or not it is a candidate; a dense network's only subnetwork."""
    router: Router | None
    """None where there is nothing to choose, and nothing to choose with."""
    count_macs: Callable[[], NetworkMacs]
    """Counts the MACs of an image of ``sizes.reference`` pixels a side; others are in proportion."""
    budget: float | None = None
    """The average MACs wanted by default, as a fraction of the dense ones; None: the router's price decides."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of what can be chosen; empty for a dense network."""
        return () if self.router is None else tuple(subnetwork.name for subnetwork in self.subnetworks)

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.dense.channels

    @property
    def sizes(self) -> SizeRequirements:
        """Sizes of images that the network takes, and its scale."""
        return self.dense.sizes

    def index(self, candidate: str | None) -> int:
        """Place of the candidate named. Raises UsageError for one that is not there."""
        if self.router is None:
            raise UsageError(f'{candidate}: the network is dense and has no candidates', key='candidate')
        if candidate not in self.candidates:
            raise UsageError(f'{candidate!r} is not one of this network: {", ".join(self.candidates)}', key='candidate')
        return self.candidates.index(candidate)

    def subnetwork(self, candidate: str | None) -> Subnetwork:
        """The candidate named, by default the densest; of a dense network itself. Raises UsageError as ``index``."""
        return self.subnetworks[-1 if candidate is None else self.index(candidate)]

    def of_precision(self, precision: str) -> RoutedNetwork:
        """The network with the candidates of one precision, ``fp32`` or ``int8``, and those that run nothing of the
        base network; ``auto`` leaves all. Raises UsageError where none is left."""
        kept = [
            k
            for k, one in enumerate(self.subnetworks)
            if precision == 'auto' or not one.runs_base or one.int8 == (precision == 'int8')
        ]
        if not any(self.subnetworks[k].runs_base for k in kept) and any(one.runs_base for one in self.subnetworks):
            have = ', '.join(self.candidates) or 'only the dense network'
            raise UsageError(f'{precision}: none of its candidates computes so: it has {have}', key='precision')
        if len(kept) == len(self.subnetworks):
            return self

        def count_macs() -> NetworkMacs:
            counted = self.count_macs()
            return replace(counted, candidates=tuple(counted.candidates[k] for k in kept), layers=())

        return replace(
            self,
            subnetworks=tuple(self.subnetworks[k] for k in kept),
            router=None if self.router is None else replace(self.router, only=tuple(kept)),
            count_macs=count_macs,
        )

    @cached_property
    def info(self) -> ModelInfo:
        """What restoring needs to know, counted once."""
        macs = self.count_macs()
        pixels = macs.size[1] * macs.size[2]
        return ModelInfo(
            candidates=self.candidates,
            channels=self.channels,
            sizes=self.sizes,
            macs_dense=macs.dense / pixels,
            macs=tuple(value / pixels for value in macs.candidates),
            macs_classifier=macs.classifier / pixels,
            params_dense=count_parameters(self.dense.net),
            params=tuple(subnetwork.count_parameters() for subnetwork in self.subnetworks),
            params_routed=count_parameters(self.module),
        )


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, the zeros of candidates' own weights left out."""
    own = {id(weight) for layer in module.modules() for weight in getattr(layer, 'weights', ())}
    return sum(int(p.count_nonzero()) if id(p) in own else p.numel() for p in module.parameters())


def ladder_of_networks(networks: Sequence[RoutedNetwork], names: Sequence[str], router: Router) -> RoutedNetwork:
    """Several dense networks of one task, from the cheapest to the dearest, as a network that routes among them.

    Args:
        networks: dense ones, of one scale and one number of channels.
        names: of the candidates that they become.
        router: its classifier takes the same images.
    """

    def count_macs() -> NetworkMacs:
        counted = [network.count_macs() for network in networks]
        classifier = count_by_module(router.classifier, counted[-1].size)['']
        return NetworkMacs(counted[-1].size, counted[-1].dense, tuple(macs.dense for macs in counted), classifier, ())

    subnetworks = tuple(replace(network.dense, name=name, runs_base=False) for name, network in zip(names, networks))
    module = nn.ModuleList([*(network.module for network in networks), router.classifier])
    return RoutedNetwork(module, subnetworks, networks[-1].dense, router, count_macs)
