"""Networks that return several images, or take more than one, as networks of one image."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import WrappingAdapter, register_adapter
from basicsr_classpruning.archs.base_network import build_base, find_inputs
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sizes import Inputs
from basicsr_classpruning.sparsity.apply import LayerUse

_NAME = 'OneImage'
_PREFIX = 'called.'
_SCALES = ('scale', 'upscale', 'scale_factor', 'upscale_factor', 'upscaling')  # one thing under several names

_log = logging.getLogger('basicsr_classpruning')


@ARCH_REGISTRY.register()
class OneImage(nn.Module):
    """Calls a network with one image, for one image. (B, C, H, W) to (B, C', H · s, W · s).

    Its checkpoints have the names of the network inside, so that programs which know that one read them.

    Args:
        net: options of the network, or the network itself.
        output: which of the images that the network returns is the restored one: its place in a list or tuple, from the
            end where negative, or its key in a dictionary. None where it returns only that one.
        arguments: what the network's forward is given besides the image, by name: numbers and words.
    """

    def __init__(
        self,
        net: Mapping[str, Any] | nn.Module,
        output: int | str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.called = net if isinstance(net, nn.Module) else build_base(net)
        self.output = output
        self.arguments = dict(arguments or {})

    def forward(self, x: Tensor) -> Tensor:
        returned = self.called(x, **self.arguments)
        return returned if self.output is None else returned[self.output]


register_adapter(_NAME)(
    lambda: WrappingAdapter(
        _PREFIX, lambda net, options: OneImage(net, options.get('output'), options.get('arguments'))
    )
)


def as_one_image(
    net: nn.Module, base: Mapping[str, Any], output: int | str | None = None
) -> tuple[nn.Module, dict[str, Any], Inputs]:
    """A network as inference and training need it, with its options and what a run of it showed.

    Where its forward takes more than an image, and the options say what, or it returns several images, it is put into a
    ``OneImage``, and a line in the log says so; other networks stay as they are.

    Args:
        net: takes images ``(B, C, H, W)``.
        base: its options.
        output: which of its images is the restored one; found by running it where it is None.

    Raises UserError where arguments are not known, and as ``probe`` does.
    """
    options = dict(base)
    arguments = {} if isinstance(net, OneImage) else _further_arguments(net, options)
    if arguments or output is not None:
        net, options = _wrapped(net, options, output, arguments)
    inputs = find_inputs(net, options)
    if inputs.output is None:
        return net, options, inputs
    _log.warning(
        '%s returns %d images: %r is taken as the restored one; `output` names another',
        options.get('type'),
        inputs.images,
        inputs.output,
    )
    before = isinstance(net, OneImage)
    net, options = _wrapped(net, options, inputs.output, {})
    if not before:
        use = LayerUse(f'{_PREFIX}{inputs.use.first}', frozenset(f'{_PREFIX}{name}' for name in inputs.use.read))
        inputs = replace(inputs, use=use)
    return net, options, replace(inputs, output=None)


def _wrapped(
    net: nn.Module, options: Mapping[str, Any], output: int | str | None, arguments: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    if isinstance(net, OneImage):
        net.output = output
        return net, {**options, 'output': output}
    made = OneImage(net, output, arguments).train(net.training)
    return made, {'type': _NAME, 'output': output, 'arguments': dict(arguments), 'net': dict(options)}


def _further_arguments(net: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a network's forward needs besides the image, as far as its options or its attributes have it."""
    try:
        parameters: Sequence[inspect.Parameter] = list(inspect.signature(net.forward).parameters.values())
    except (TypeError, ValueError):  # compiled code has no signature
        return {}
    found, missing = {}, []
    for parameter in parameters[1:]:
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        name = parameter.name
        names = _SCALES if name in _SCALES else (name,)
        values = (value for key in (name, *names) for value in (options.get(key), getattr(net, key, None)))
        value = next((value for value in values if isinstance(value, (bool, int, float, str))), None)
        if value is None:
            missing.append(name)
        else:
            found[name] = value
    if missing:
        example = '{type: OneImage, arguments: {' + ', '.join(f'{name}: …' for name in missing) + '}, net: {…}}'
        raise UserError(
            f'{type(net).__name__} needs more than an image: {", ".join(missing)}; where that is a number, name it: '
            f'{example}'
        )
    return found
