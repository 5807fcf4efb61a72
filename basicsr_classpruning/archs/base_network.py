"""Base networks: built from their options, asked for their channels, loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.ecbsr_fold import fold_ecbsr
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
    return fold_ecbsr(net) if name == 'ECBSR' else net


def input_channels(net: nn.Module, base: Mapping[str, Any]) -> int:
    """Channels of the images that a base network takes, from its options, defaults or first convolution."""
    declared = declared_channels(type(net), base)
    if declared is not None:
        return declared
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def declared_channels(kind: type[nn.Module], base: Mapping[str, Any]) -> int | None:
    """Channels of the images that a kind of network takes, as far as its options or their defaults say so."""
    defaults = inspect.signature(kind.__init__).parameters
    for key in _CHANNEL_OPTIONS:
        value = base.get(key, defaults[key].default if key in defaults else None)
        if isinstance(value, int):
            return value
    return None


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
