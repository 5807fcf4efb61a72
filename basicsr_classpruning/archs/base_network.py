"""Base networks: built from their options, asked for their channels, loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import adapter_of
from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.errors import UsageError, UserError

# Input channels by the names that restoration networks give them.
_CHANNEL_OPTIONS = ('num_in_ch', 'in_channels', 'in_chans', 'img_channel', 'in_nc', 'n_colors')


def build_base(base: Mapping[str, Any]) -> nn.Module:
    """Builds a base network from its options. Raises UsageError for unknown and unsupported types and arguments."""
    options = deepcopy(dict(base))
    name = options.pop('type', None)
    reason = refusal(name) if isinstance(name, str) else None
    if reason:
        raise UsageError(f'network_g.base.type: {name} cannot be pruned: {reason}')
    if name not in ARCH_REGISTRY and f'{name}_basicsr' not in ARCH_REGISTRY:
        raise UsageError(f'network_g.base.type: {name!r} is not in ARCH_REGISTRY; import your own with custom_imports')
    registered = name if name in ARCH_REGISTRY else f'{name}_basicsr'
    try:
        net = ARCH_REGISTRY.get(registered)(**options)
    except UserError:
        raise
    except Exception as error:  # a constructor may stumble over its arguments in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f'network_g.base: {name} cannot be built: {reason}') from None
    return adapter_of(base).fold(net)


def input_channels(net: nn.Module, base: Mapping[str, Any]) -> int:
    """Channels of the images that a base network takes, from its options, defaults or first convolution."""
    if isinstance(base.get('net'), Mapping):  # a network around another
        return input_channels(next(net.children()), base['net'])
    defaults = inspect.signature(type(net).__init__).parameters
    for key in _CHANNEL_OPTIONS:
        value = base.get(key, defaults[key].default if key in defaults else None)
        if isinstance(value, int):
            return value
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def network_name(options: Mapping[str, Any]) -> str:
    """What a network is called in reports: the architecture that spandrel detected, or the type."""
    if isinstance(options.get('net'), Mapping):
        return network_name(options['net'])
    return options.get('architecture') or options.get('type', '')


def load_fitting(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Loads a state dict; raises UserError with one line where keys or shapes do not fit."""
    wanted = module.state_dict()
    problems = [f'{key} is missing' for key in wanted if key not in params]
    problems += [f'{key} is not a key of this network' for key in params if key not in wanted]
    problems += [
        f'{key} has shape {tuple(params[key].shape)}, wanted {tuple(value.shape)}'
        for key, value in wanted.items()
        if key in params and params[key].shape != value.shape
    ]
    if problems:
        more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
        raise UserError(f'weights do not fit the network: {problems[0]}{more}')
    module.load_state_dict(params)


def load_what_fits(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Loads the part of a state dict that fits, as BasicSR does with ``strict_load_g: false``, and logs what does not.

    To start a ×4 network from a ×2 one, say. Raises UserError where nothing fits.
    """
    wanted = module.state_dict()
    fitting = {key: value for key, value in params.items() if key in wanted and value.shape == wanted[key].shape}
    if not any(value.data_ptr() != wanted[key].data_ptr() for key, value in fitting.items()):  # its own are no news
        raise UserError('weights do not fit the network: none of them has the name and shape of one of its own')
    left = [f'{key} {tuple(value.shape)}' for key, value in wanted.items() if key not in fitting]
    unused = [f'{key} {tuple(value.shape)}' for key, value in params.items() if key not in fitting]
    module.load_state_dict(fitting, strict=False)
    if left or unused:
        get_root_logger().warning(
            f'{len(fitting)} of {len(wanted)} weights loaded; as they were: {", ".join(left) or "none"}; '
            f'not used: {", ".join(unused) or "none"}'
        )
