"""OpenVINO's CPU plugin in fp32, bf16, and in int8 as NNCF quantises it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.benchmark.rivals.batches import one_by_one
from basicsr_classpruning.benchmark.rivals.registry import Conditions, register_rival
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.engines import Engine

_PACKAGES = ('onnx', 'onnxruntime', 'openvino')


@register_rival('openvino-fp32', packages=_PACKAGES)
def openvino_fp32(conditions: Conditions) -> Engine:
    """As it is converted."""
    return _engine(conditions, _read(conditions), 'f32')


@register_rival('openvino-bf16', packages=_PACKAGES, lossless=False)
def openvino_bf16(conditions: Conditions) -> Engine:
    """Activations and weights in bf16."""
    import openvino

    if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise UserError('this processor does not compute in bf16')
    return _engine(conditions, _read(conditions), 'bf16')


@register_rival('openvino-int8', packages=(*_PACKAGES, 'nncf'), lossless=False)
def openvino_int8(conditions: Conditions) -> Engine:
    """Activations and weights in int8, their ranges and the biases from the calibration inputs."""
    if conditions.calibration is None:
        raise UserError('needs `calibration`, a folder of pictures like those to be restored')
    return _engine(conditions, _quantised(conditions, conditions.calibration), 'f32')


def _read(conditions: Conditions) -> Any:
    import openvino

    return openvino.Core().read_model(conditions.graph.content, b'')


@torch.no_grad()
def _quantised(conditions: Conditions, calibration: Tensor) -> Any:
    """The model in int8, set up for the least loss at the same speed.

    NNCF takes the mean of the pictures' extremes for what layers receive, which cuts what few pictures have: where some
    are smooth and some are not, EDSR loses 11 dB by it instead of 0.8. Their extremes themselves lose more where all
    are noisy. Both are made, and the one is taken that is nearer to the network on the calibration inputs. Sums are
    left in float: 0.2 dB in EDSR, and not slower. The preset with asymmetric activations gains .5 dB in networks with
    PReLU and loses nothing in those with ReLU; the slower correction of biases gains .02 to .3 dB. The first and the
    last layer in float gain as much again in EDSR, lose in DnCNN, and take a tenth longer.
    """
    os.environ.setdefault('NNCF_CI', '1')  # else it reports over the network that it was used
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    wanted = conditions.network.net(calibration)

    def quantised(ranges: Any) -> tuple[float, Any]:
        model = _read(conditions)
        _fold_biases(model)
        transformer = any(operator.get_type_name() == 'Softmax' for operator in model.get_ops())
        with contextlib.redirect_stdout(io.StringIO()):  # it draws bars
            model = nncf.quantize(
                model,
                nncf.Dataset([image[None].numpy() for image in calibration]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibration),
                fast_bias_correction=False,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=nncf.IgnoredScope(types=['Add'], validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
            )
        found = _engine(conditions, model.clone(), 'f32')(calibration)
        return float((found - wanted).square().mean()), model

    ways = RangeEstimatorParametersSet.MINMAX, RangeEstimatorParametersSet.MEAN_MINMAX
    return min((quantised(ranges) for ranges in ways), key=lambda way: way[0])[1]


def _fold_biases(model: Any) -> None:
    """Makes constants of reshaped ones, as biases are read: NNCF would not recognise them, and not correct them.

    Not by OpenVINO's own pass, which divides by zero in the windows of transformers.
    """
    from openvino import opset13

    for operator in model.get_ordered_ops():
        if operator.get_type_name() != 'Reshape' or operator.output(0).partial_shape.is_dynamic:
            continue
        source = operator.input_value(0).get_node()
        if source.get_type_name() == 'Constant':
            folded = opset13.constant(source.data.reshape(tuple(operator.output(0).shape)))
            folded.set_friendly_name(operator.get_friendly_name())
            operator.output(0).replace(folded.output(0))


def _engine(conditions: Conditions, model: Any, precision: str) -> Engine:
    """Runs a model, compiled for each shape: such graphs are the faster ones."""
    import openvino

    core = openvino.Core()
    settings = {
        'INFERENCE_NUM_THREADS': conditions.threads,
        'INFERENCE_PRECISION_HINT': precision,
        'PERFORMANCE_HINT': 'LATENCY',
    }
    compiled: dict[tuple[int, ...], Any] = {}

    def run(x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if shape not in compiled:
            model.reshape(list(shape))
            compiled[shape] = core.compile_model(model, 'CPU', settings)
        result = compiled[shape](np.ascontiguousarray(x.numpy()), share_inputs=True)[0]
        return torch.from_numpy(result.copy())

    return run if conditions.graph.any_batch else one_by_one(run)
