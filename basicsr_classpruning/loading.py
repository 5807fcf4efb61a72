"""From a checkpoint file to a network that restores images."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from basicsr_classpruning.archs.adapters import adapter_of, fitting_params, recognise
from basicsr_classpruning.archs.base_network import build_base, load_fitting
from basicsr_classpruning.archs.classpruning_arch import ClassPruning
from basicsr_classpruning.archs.dense import DenseNetwork
from basicsr_classpruning.archs.one_image_arch import as_one_image
from basicsr_classpruning.archs.spandrel_adapter import SPANDREL, detect
from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.sizes import probe
from basicsr_classpruning.untrusted.bounds import Bounded

_log = logging.getLogger('basicsr_classpruning')


def load(
    path: str | os.PathLike[str],
    arch: Mapping[str, Any] | None = None,
    imports: Iterable[str] = (),
    param_key: str | None = None,
) -> ClassPruning | DenseNetwork:
    """Loads a network from a ClassPruning or a dense checkpoint.

    Args:
        path: BasicSR's format, safetensors, a raw state dict or one that other programs put into a container.
        arch: options of the network (``network_g``), for a dense file that does not say what it is.
        imports: names of the user's modules that register networks.
        param_key: keys that lead to the weights, joined by dots, in a file that holds several networks.

    Returns:
        The network in eval mode; it takes images ``(B, C, H, W)`` in [0, 1] of any size.

    Raises:
        UserError: the file cannot be read, or its weights do not fit.
        UsageError: the architecture is unknown, or its options are wrong.
    """
    if imports:
        from basicsr_classpruning.config import import_modules  # needs pydantic, which takes a while to load

        import_modules(imports)
    checkpoint = read_checkpoint(path, param_key)
    params = checkpoint.params()
    options = dict(checkpoint.network_g or arch or {})
    try:
        with Bounded(params):
            if options.get('type') == 'ClassPruning':
                net: ClassPruning | DenseNetwork = load_classpruning(options, params)
            else:
                net = load_dense(options or None, params)
            net.eval()
    except UsageError as error:
        raise UsageError(f'{checkpoint.path}: {error}') from None
    except UserError as error:
        raise UserError(f'{checkpoint.path}: {error}') from None
    except Exception as error:  # a file's options may be any nonsense, on which any line may stumble
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f'{checkpoint.path}: network_g makes no network: {reason}') from None
    return net


def load_classpruning(options: Mapping[str, Any], params: Mapping[str, Tensor]) -> ClassPruning:
    """Builds a ClassPruning network from its options and loads its weights."""
    options = {key: value for key, value in options.items() if key != 'type'}
    base = options.get('base', {})
    dense = {
        key.removeprefix('base.'): value
        for key, value in params.items()
        if key.startswith('base.') and not _belongs_to_candidates(key)
    }
    net = ClassPruning(**options, base_net=adapter_of(base).build(base, dense or params))
    older = net.without_candidates(params)
    if older:
        _log.warning('left dense, as in the file, which has no candidates of them: %s', ', '.join(older))
        options['skip'] = [*options.get('skip', ()), *(f'^{re.escape(name)}$' for name in older)]
        net = ClassPruning(**options, base_net=adapter_of(base).build(base, dense or params))
    net.load_params(params)
    return net


def load_dense(options: Mapping[str, Any] | None, params: Mapping[str, Tensor]) -> DenseNetwork:
    """Loads a dense network; without options, an adapter or spandrel finds out what it is."""
    options = options or recognise(params)
    if options is None or options.get('type') == SPANDREL:
        net, channels, options = detect(params)
        return DenseNetwork(net, probe(net, [channels]), options)
    built = adapter_of(options).build(options, params)
    net = build_base(options) if built is None else built
    if built is None:
        load_fitting(net, fitting_params(options, params, net.state_dict()))
    net, options, inputs = as_one_image(net.eval(), options)
    return DenseNetwork(net, inputs, options)


def _belongs_to_candidates(key: str) -> bool:
    """Whether a key of a ClassPruning state dict holds a candidate's mask, bias or weight."""
    parts = key.split('.')
    single = ('ranks', 'weight_scales', 'input_scale', 'input_zero')
    return parts[-1] in single or (len(parts) > 1 and parts[-2] in ('biases', 'weights') and parts[-1].isdigit())
