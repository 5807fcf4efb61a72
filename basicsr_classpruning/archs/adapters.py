"""Architectures that must be changed before they can be pruned, and changed back for other programs.

An adapter is an object for one architecture, registered under its type:

    @register_adapter('ECBSR')
    class ECBSRAdapter(Adapter): ...

Those of this package are in ``archs/NAME_adapter.py``, where they are found by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from basicsr_classpruning.archs.plain_network import build_plain, fold_norms
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.untrusted.containers import variants


class Adapter:
    """Leaves a network as it is, but for weights under weight or spectral normalisation, which are folded.

    *Folded* is the network that is pruned, restored with and stored in ClassPruning checkpoints; *plain* the registered
    one, as dense checkpoints and other programs know it.
    """

    def build(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> nn.Module | None:
        """The folded network with its weights, where a file's options do not suffice to build it; None where they do.

        Args:
            options: as a file has them.
            params: of the plain network or of the folded one.
        """
        return None

    def fold(self, net: nn.Module) -> nn.Module:
        """The folded network that computes, in eval mode, what the plain one does; it may be the same, changed."""
        return fold_norms(net)

    def fold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns a state dict of the plain network into one of the folded; one already folded is returned as it is.

        Args:
            options: of the plain network, with or without ``type``.
            params: without prefixes.

        Raises UserError with one line where the parameters do not fit the options.
        """
        if not any(map(_NORMALISED.search, params)):
            return dict(params)
        net = build_plain(options)
        own = net.state_dict()  # with the versions of its parts, by which torch tells old names
        if own.keys() != params.keys():
            return dict(params)
        own.update(params)
        net.load_state_dict(own)
        return fold_norms(net).state_dict()

    def unfold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns a state dict of the folded network into one of the plain network, which computes the same."""
        return dict(params)

    def recognise(self, params: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Options of the plain network that has exactly these parameters; None where they are another network's."""
        return None


# What weight and spectral normalisation make of a parameter's name.
_NORMALISED = re.compile(r'(^|\.)parametrizations\.|_g$|_orig$')
_Class = TypeVar('_Class', bound=Callable[[], Adapter])
_PLAIN = Adapter()
_adapters: dict[str, Adapter] = {}


def register_adapter(architecture: str) -> Callable[[_Class], _Class]:
    """Decorates the adapter of an architecture, named as in ``ARCH_REGISTRY``.

    Raises UsageError where the architecture has one already.
    """

    def register(adapter: _Class) -> _Class:
        if architecture in _adapters:
            raise UsageError(f'{architecture} has an adapter already, {type(_adapters[architecture]).__name__}')
        _adapters[architecture] = adapter()
        return adapter

    return register


class WrappingAdapter(Adapter):
    """Of a network around another one, ``options['net']``: puts that one under a prefix, and asks its adapter.

    Args:
        prefix: of the names of the network inside, with a dot at its end.
        wrap: makes the network from the one inside and its own options.
    """

    def __init__(self, prefix: str, wrap: Callable[[nn.Module, Mapping[str, Any]], nn.Module]) -> None:
        self._prefix, self._wrap = prefix, wrap

    def build(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> nn.Module | None:
        net = adapter_of(options['net']).build(options['net'], self._inner(params))
        return None if net is None else self._wrap(net, options)

    def fold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        folded = adapter_of(options['net']).fold_params(options['net'], self._inner(params))
        return {f'{self._prefix}{key}': value for key, value in folded.items()}

    def unfold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return adapter_of(options['net']).unfold_params(options['net'], self._inner(params))

    def _inner(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix(self._prefix): value for key, value in params.items()}


def adapter_of(options: Mapping[str, Any]) -> Adapter:
    """The adapter of the architecture that ``options`` name by ``type``; one that changes nothing where none is."""
    name = options.get('type')
    # BasicSR's registry knows some of its own by both names.
    return _adapters.get(name.removesuffix('_basicsr'), _PLAIN) if isinstance(name, str) else _PLAIN


def recognise(params: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the registered network that a file without options holds; None where no adapter knows it."""
    found = (adapter.recognise(variant) for variant in variants(params) for adapter in _adapters.values())
    return next(filter(None, found), None)


def fitting_params(
    options: Mapping[str, Any], params: Mapping[str, Tensor], wanted: Iterable[str]
) -> dict[str, Tensor]:
    """A state dict of the network that ``options`` describe, under the names that the network at hand has, as far as
    they can be found.

    Prefixes that something put before all names, and other networks beside it, are left out where more names fit then.

    Args:
        options: of the plain network.
        params: of the plain network or of the folded one, as a file has them.
        wanted: names of the parameters of the network at hand, plain or folded.

    Raises UserError with one line where the parameters do not fit the options.
    """
    names = set(wanted)
    found: list[dict[str, Tensor]] = []
    problem = None
    for variant in variants(params):
        found.append(variant)
        try:
            found.append(adapter_of(options).fold_params(options, variant))
        except UserError as error:
            problem = problem or error
        except (KeyError, RuntimeError) as error:  # an adapter may count on names and shapes that are not there
            problem = problem or UserError(f'weights do not fit the network: {type(error).__name__}: {error}')
        for each in found[-2:]:
            if each.keys() == names:
                return each
    best = max(found, key=lambda each: (len(names & each.keys()), -len(each.keys() - names)))
    if problem is not None and 2 * len(names & best.keys()) < len(names):
        raise problem
    return best
