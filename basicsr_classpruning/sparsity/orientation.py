"""The weights of every kind of layer in one order: output channels, input channels of a group, kernel taps."""

from __future__ import annotations

from torch import Tensor, nn

PrunableLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def groups_of(layer: PrunableLayer) -> int:
    """Convolution groups; 1 of a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def channels_of(layer: PrunableLayer) -> int:
    """Input channels that one output channel sees: of a grouped convolution those of its group."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups


def by_output(layer: nn.Module, values: Tensor) -> Tensor:
    """Values in the shape of the layer's weight as ``(O, C / groups, *taps)``, along which patterns run.

    That is how convolutions and linear layers store them; transposed convolutions have ``(C, O / groups, *taps)``.
    """
    if not isinstance(layer, nn.ConvTranspose2d):
        return values
    return values.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)


def as_stored(layer: nn.Module, values: Tensor) -> Tensor:
    """The inverse of ``by_output``: ``(O, C / groups, *taps)`` in the shape of the layer's weight."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return values
    return values.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
