"""ONNX graphs of any height and width, checked in ONNX Runtime before they are written."""

from __future__ import annotations

import copy
import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from basicsr_classpruning.devices import device_of
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.routing.network import Subnetwork
from basicsr_classpruning.safe_files import write_atomically
from basicsr_classpruning.sizes import SizeRequirements
from basicsr_classpruning.sparsity.int8 import LARGEST_INPUT, Int8Conv2d, Int8Linear, int8_layers

INPUT, OUTPUT = 'input', 'output'
"""Names of a graph's input ``(B, C, H, W)`` and output."""
TOLERANCE = 1e-4
"""Greatest difference of a graph's output from the network's, where that is within [-1, 1]."""
INT8_TOLERANCE = 0.02
"""The same of networks that multiply 8-bit integers: rounding in another order moves single values by one step."""
_OPSET = 17  # the first with LayerNormalization; ONNX Runtime since 1.12, OpenVINO since 2022.3
_STEP = 7  # pixels between the sides tried, where any goes: odd, for networks that halve their input


@dataclass(frozen=True)
class Graph:
    """A converted network that does what the network does."""

    content: bytes
    """The ONNX file."""
    any_batch: bool
    """Whether it takes batches of any size; else one image at a time."""
    difference: float
    """Greatest difference of its output from the network's, over all images tried."""
    tried: tuple[tuple[int, ...], ...]
    """Shapes ``(B, C, H, W)`` of the images tried, none of them the one that the network was traced with."""


def require_onnx() -> None:
    """Raises UserError where the optional packages are missing."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {" and ".join(missing)}: pip install basicsr-classpruning[engines]')


def export_onnx(network: Subnetwork, path: str | os.PathLike[str]) -> Graph:
    """Writes one network as an ONNX file, whole or not at all, and returns what was written.

    Raises UserError where the network cannot be converted, its graph does something else, a package is missing, or
    the file cannot be written.
    """
    graph = convert(network.net, network.channels, network.sizes)
    write_atomically(path, lambda file: file.write(graph.content))
    return graph


def convert(net: nn.Module, channels: int, sizes: SizeRequirements) -> Graph:
    """Converts a network and compares the graph with it in ONNX Runtime.

    The exporter that traces is used, since it converts every network of BasicSR's in a second or two; the newer one
    takes up to minutes and gives the same outputs. A trace may hold a number that should depend on the input: what the
    check is for. Where that is the size of the batch (the windows of transformers), images go one by one.

    Args:
        net: takes images ``(B, C, H, W)`` in [0, 1], in eval mode.
        channels: C.
        sizes: H and W that the network takes.

    Raises UserError where the network cannot be converted, its graph does something else, or a package is missing.
    """
    require_onnx()
    tolerance = INT8_TOLERANCE if int8_layers(net) else TOLERANCE
    step = -(-_STEP // sizes.multiple) * sizes.multiple
    low, middle, high = (sizes.padded(2 * _STEP) + i * step for i in range(3))
    plane, planes = (channels, middle, high), ((channels, low, middle), (channels, high, low))
    difference = math.inf
    for batch, tried in ((2, (1, 3)), (1, (1, 1))):
        content = _trace(_with_fake_quantisation(net), (batch, *plane), batch > 1)
        shapes = tuple((count, *size) for count, size in zip(tried, planes))
        difference = _difference(net, content, shapes)
        if difference <= tolerance:
            return Graph(content, batch > 1, difference, shapes)
    what = f'its output is off by {difference:.1g}' if math.isfinite(difference) else 'its graph fails'
    raise UserError(
        f'{type(net).__name__} cannot be exported to ONNX with any height and width: '
        f'at other sizes than the traced one {what}'
    )


class _FakeInt8Conv2d(Int8Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(_fake_inputs(self, input), _fake_weight(self), self.bias)


class _FakeInt8Linear(Int8Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(_fake_inputs(self, input), _fake_weight(self), self.bias)


def _fake_inputs(layer: Int8Conv2d | Int8Linear, x: Tensor) -> Tensor:
    zero = int(layer.input_zero)
    return torch.fake_quantize_per_tensor_affine(x, float(layer.input_scale), zero, 0, LARGEST_INPUT)


def _fake_weight(layer: Int8Conv2d | Int8Linear) -> Tensor:
    zeros = torch.zeros_like(layer.weight_scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(layer.weight, layer.weight_scale, zeros, 0, -128, 127)


def _with_fake_quantisation(net: nn.Module) -> nn.Module:
    """The network with layers that the exporter writes as QuantizeLinear and DequantizeLinear."""
    if not int8_layers(net):
        return net
    fake = copy.deepcopy(net)
    for layer in int8_layers(fake).values():
        layer.__class__ = _FakeInt8Conv2d if isinstance(layer, Int8Conv2d) else _FakeInt8Linear
    return fake


def _trace(net: nn.Module, shape: Sequence[int], any_batch: bool) -> bytes:
    axes = {0: 'batch', 2: 'height', 3: 'width'} if any_batch else {2: 'height', 3: 'width'}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            torch.onnx.export(
                net,
                (_images(shape).to(device_of(net)),),
                file,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: axes, OUTPUT: {axis: f'{OUTPUT}_{name}' for axis, name in axes.items()}},
            )
    except Exception as error:  # the exporter fails in many ways over what it does not know
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f'{type(net).__name__} cannot be exported to ONNX: {reason[:200]}') from None
    return file.getvalue()


def _difference(net: nn.Module, content: bytes, shapes: Sequence[Sequence[int]]) -> float:
    """Greatest difference between graph and network, relative to outputs beyond 1; infinite where the graph fails."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by the exception
    # Without VNNI it multiplies 8-bit integers in sums of 16 bits that saturate, unless it is told not to: what is
    # compared is the graph.
    options.add_session_config_entry('session.x64quantprecision', '1')
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
        for shape in shapes:
            images = _images(shape)
            output = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
            worst = max(worst, _relative_difference(output, _run(net, images)))
    except Exception:  # ONNX Runtime raises classes of its own, which have no common base
        return math.inf
    return worst


def _relative_difference(output: Tensor, wanted: Tensor) -> float:
    if output.shape != wanted.shape:
        return math.inf
    difference = float((output - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return math.inf if math.isnan(difference) else difference


@torch.no_grad()
def _run(net: nn.Module, images: Tensor) -> Tensor:
    return net(images.to(device_of(net))).cpu()


def _images(shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))
