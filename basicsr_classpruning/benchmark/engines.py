"""What a user would otherwise run a dense network with on a CPU: ONNX Runtime and OpenVINO, both optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.errors import UserError
from basicsr_classpruning.export.onnx import INPUT, OUTPUT, Graph, convert
from basicsr_classpruning.inference.engines import Engine
from basicsr_classpruning.routing.network import Subnetwork

NAMES = ('onnxruntime', 'openvino-fp32', 'openvino-bf16')


def foreign_engines(network: Subnetwork, threads: int) -> tuple[dict[str, Engine], dict[str, str]]:
    """Makes the engines that can be had here.

    Args:
        network: a dense one, on the CPU.
        threads: that each engine may use.

    Returns:
        The engines by name, and for each name that is missing the reason.
    """
    missing = {name: reason for name in NAMES if (reason := _why_not(name))}
    wanted = [name for name in NAMES if name not in missing]
    if not wanted:
        return {}, missing
    try:
        graph = convert(network.net, network.channels, network.sizes)
    except UserError as error:
        return {}, {**missing, **dict.fromkeys(wanted, str(error))}
    return {name: _MAKERS[name](graph, threads) for name in wanted}, missing


def _why_not(name: str) -> str:
    """Why an engine cannot run here; empty if it can."""
    packages = ('onnx', 'onnxruntime', *(('openvino',) if name.startswith('openvino') else ()))
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        return f'{" and ".join(absent)} not installed: pip install basicsr-classpruning[engines]'
    if name == 'openvino-bf16':
        import openvino

        if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            return 'this processor does not compute in bf16'
    return ''


def _one_by_one(graph: Graph, run: Engine) -> Engine:
    """Gives batches image by image to a graph that takes no others."""
    if graph.any_batch:
        return run
    return lambda x: torch.cat([run(image) for image in x.split(1)])


def _onnxruntime(graph: Graph, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.content, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: np.ascontiguousarray(x.numpy())})[0])

    return _one_by_one(graph, run)


def _openvino(precision: str) -> Callable[[Graph, int], Engine]:
    def make(graph: Graph, threads: int) -> Engine:
        import openvino

        core = openvino.Core()
        model = core.read_model(graph.content, b'')
        settings = {
            'INFERENCE_NUM_THREADS': threads,
            'INFERENCE_PRECISION_HINT': precision,
            'PERFORMANCE_HINT': 'LATENCY',
        }
        compiled: dict[tuple[int, ...], Any] = {}

        def run(x: Tensor) -> Tensor:
            shape = tuple(x.shape)
            if shape not in compiled:  # graphs of one shape are the faster ones
                model.reshape(list(shape))
                compiled[shape] = core.compile_model(model, 'CPU', settings)
            result = compiled[shape](np.ascontiguousarray(x.numpy()))[0]
            return torch.from_numpy(result.copy())

        return _one_by_one(graph, run)

    return make


_MAKERS: dict[str, Callable[[Graph, int], Engine]] = {
    'onnxruntime': _onnxruntime,
    'openvino-fp32': _openvino('f32'),
    'openvino-bf16': _openvino('bf16'),
}
