"""Networks that BasicSR lacks and spandrel has: it finds out from a file's weights what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import Adapter, register_adapter
from basicsr_classpruning.checkpoint import read_checkpoint
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.untrusted.containers import variants

SPANDREL = 'Spandrel'  # type of such a network in options
_NAME_IT = 'name it with `arch` (a network_g block)'


def detect(params: Mapping[str, Tensor]) -> tuple[nn.Module, int, dict[str, Any]]:
    """Lets spandrel build the network that fits a state dict.

    Returns:
        The network with its weights, its input channels and the options that stand for it.

    Raises UsageError with one line where spandrel does not know it.
    """
    import spandrel

    problem = UsageError(f'its architecture is neither in the file nor detected; {_NAME_IT}')
    for variant in variants(params):
        try:
            descriptor = spandrel.ModelLoader(device='cpu').load_from_state_dict(variant)
        except spandrel.UnsupportedModelError:
            continue
        except UserError:
            raise
        except Exception as error:  # detection stumbles in many ways over files that are not quite what they seem
            lines = [line.strip() for line in str(error).splitlines()][:2]
            reason = f'{type(error).__name__}: {" ".join(lines)}'[:160]
            problem = UsageError(f'its architecture is not quite one that is detected ({reason}); {_NAME_IT}')
            continue
        if not isinstance(descriptor, spandrel.ImageModelDescriptor):
            raise UsageError(f'a {descriptor.architecture.name} network does not restore single images')
        options = {'type': SPANDREL, 'architecture': descriptor.architecture.id}
        return descriptor.model, descriptor.input_channels, options
    raise problem


@ARCH_REGISTRY.register()
def Spandrel(checkpoint: str, architecture: str | None = None) -> nn.Module:
    """The network in a checkpoint, to be named in options: ``base: {type: Spandrel, checkpoint: FILE}``.

    Args:
        checkpoint: the file.
        architecture: spandrel's name of the network, which is checked where it is given.

    Raises UsageError where spandrel does not know the network, or knows it under another name.
    """
    net, _, options = detect(read_checkpoint(checkpoint).params())
    if architecture not in (None, options['architecture']):
        raise UsageError(f'network_g.base.architecture: {architecture!r}: {checkpoint} is {options["architecture"]}')
    return net


@register_adapter(SPANDREL)
class SpandrelAdapter(Adapter):
    """Builds the network from its weights, and gives these the names that spandrel does."""

    def build(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> nn.Module | None:
        return detect(params)[0]

    def fold_params(self, options: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return detect(params)[0].state_dict()
        except UsageError:
            return dict(params)
