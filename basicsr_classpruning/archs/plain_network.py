"""Networks as their architectures build them, and the normalisations of weights that are folded into these."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.errors import UsageError, UserError


def build_plain(base: Mapping[str, Any]) -> nn.Module:
    """Builds a network from its options. Raises UsageError for unknown and unsupported types and arguments."""
    options = deepcopy(dict(base))
    name = options.pop('type', None)
    reason = refusal(name) if isinstance(name, str) else None
    if reason:
        raise UsageError(f'network_g.base.type: {name} cannot be pruned: {reason}')
    if name not in ARCH_REGISTRY and f'{name}_basicsr' not in ARCH_REGISTRY:
        raise UsageError(f'network_g.base.type: {name!r} is not in ARCH_REGISTRY; import your own with custom_imports')
    registered = name if name in ARCH_REGISTRY else f'{name}_basicsr'
    try:
        return ARCH_REGISTRY.get(registered)(**options)
    except UserError:
        raise
    except Exception as error:  # a constructor may stumble over its arguments in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f'network_g.base: {name} cannot be built: {reason}') from None


def fold_norms(net: nn.Module) -> nn.Module:
    """Replaces, in place, weights that weight or spectral normalisation computes by plain ones, those of eval mode.

    Hooks (``torch.nn.utils.weight_norm``) and parametrisations are folded, of whatever parameter.
    """
    training = net.training
    net.eval()  # spectral normalisation takes a step of its power iteration in training mode
    for module in net.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                _forget_loading_hook(module)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return net.train(training)


def _forget_loading_hook(module: nn.Module) -> None:
    """Removes what waits for names of spectral normalisation in state dicts: torch overlooks it, as it wraps it."""
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, 'hook', hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]
