"""ONNX Runtime's CPU provider."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from basicsr_classpruning.benchmark.rivals.batches import one_by_one
from basicsr_classpruning.benchmark.rivals.registry import Conditions, register_rival
from basicsr_classpruning.export.onnx import INPUT, OUTPUT
from basicsr_classpruning.inference.engines import Engine


@register_rival('onnxruntime', packages=('onnx', 'onnxruntime'))
def onnxruntime_fp32(conditions: Conditions) -> Engine:
    """One session for all sizes."""
    import onnxruntime

    graph = conditions.graph
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = conditions.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.content, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: np.ascontiguousarray(x.numpy())})[0])

    return run if graph.any_batch else one_by_one(run)
