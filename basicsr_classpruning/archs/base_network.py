"""Base networks: built from their options, asked for their channels, loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import adapter_of
from basicsr_classpruning.archs.plain_network import build_plain
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.sizes import Inputs, probe

# Input channels by the names that restoration networks give them.
_CHANNEL_OPTIONS = (
    'num_in_ch', 'in_channels', 'in_chans', 'img_channel', 'img_channels', 'in_nc', 'n_colors', 'inp_channels', 'in_ch',
    'in_chn', 'input_nc', 'nc_in', 'colors',
)  # fmt: skip
_MOST_CHANNELS = 16  # tried where no layer says more


def build_base(base: Mapping[str, Any]) -> nn.Module:
    """Builds a base network from its options. Raises UsageError for unknown and unsupported types and arguments."""
    return adapter_of(base).fold(build_plain(base))


def find_inputs(net: nn.Module, base: Mapping[str, Any]) -> Inputs:
    """What images a base network takes and how it uses its layers, found by running it.

    The channels tried are those that its options or their defaults name, 3, 1 and 4, then those that its layers take,
    in the order of their definition, then the rest of the small numbers. Raises UserError as ``probe`` does.
    """
    return probe(net, _channels_to_try(net, base))


def _channels_to_try(net: nn.Module, base: Mapping[str, Any]) -> list[int]:
    """Numbers of input channels, the most probable first, each once."""
    if isinstance(base.get('net'), Mapping):  # a network around another
        return _channels_to_try(next(net.children()), base['net'])
    layers = [layer.in_channels for layer in net.modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    return list(dict.fromkeys([*_declared(type(net), base), 3, 1, 4, *layers, *range(1, _MOST_CHANNELS + 1)]))


def declared_channels(kind: type[nn.Module], base: Mapping[str, Any]) -> int | None:
    """Channels of the images that a kind of network takes, as far as its options or their defaults say so."""
    return next(iter(_declared(kind, base)), None)


def _declared(kind: type[nn.Module], base: Mapping[str, Any]) -> list[int]:
    defaults = inspect.signature(kind.__init__).parameters
    options = [base.get(key, defaults[key].default if key in defaults else None) for key in _CHANNEL_OPTIONS]
    return [value for value in options if isinstance(value, int) and value > 0]


def network_name(options: Mapping[str, Any]) -> str:
    """What a network is called in reports: the architecture that spandrel detected, or the type."""
    if isinstance(options.get('net'), Mapping):
        return network_name(options['net'])
    return options.get('architecture') or options.get('type', '')


def load_fitting(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Loads a state dict; raises UserError with one line where keys or shapes do not fit.

    Counters of batch normalisation may be missing, as in files older than these counters: nothing depends on them.
    """
    wanted = module.state_dict()
    counters = {key: value for key, value in wanted.items() if key.endswith('num_batches_tracked')}
    params = {**counters, **params}
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
