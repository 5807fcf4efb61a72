"""ncnn in fp32, with Winograd where it has it; pnnx converts."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basicsr_classpruning.benchmark.rivals.batches import one_by_one
from basicsr_classpruning.benchmark.rivals.registry import Conditions, register_rival
from basicsr_classpruning.errors import UserError
from basicsr_classpruning.inference.engines import Engine


@register_rival('ncnn', packages=('ncnn', 'pnnx'))
def ncnn_fp32(conditions: Conditions) -> Engine:
    """Converted for each size: of a fixed one pnnx knows more operators (shuffles, padding) than of any."""
    import ncnn

    nets: dict[tuple[int, ...], Any] = {}

    def run(x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if shape not in nets:
            nets[shape] = _convert(conditions.network.net, shape, conditions.threads)
        image = np.ascontiguousarray(x[0].numpy())  # ncnn does not copy it, and so it has to be kept
        extractor = nets[shape].create_extractor()  # one for each call: several threads may call
        extractor.input('in0', ncnn.Mat(image))
        failed, output = extractor.extract('out0')
        if failed:
            raise UserError('ncnn could not compute the output')
        return torch.from_numpy(np.array(output))[None]

    return one_by_one(run)


def _convert(net: nn.Module, shape: Sequence[int], threads: int) -> Any:
    """The ncnn network for images of one shape ``(1, C, H, W)``. Raises UserError where there is none."""
    import ncnn
    import pnnx

    name = type(net).__name__
    with TemporaryDirectory() as folder:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            torch.jit.trace(net, torch.rand(tuple(shape)), check_trace=False).save(f'{folder}/net.pt')
        size = ','.join(map(str, shape))
        call = [pnnx.EXEC_PATH, 'net.pt', f'inputshape=[{size}]f32', 'fp16=0']
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, errors='replace')
        param, weights = (Path(folder) / f'net.ncnn.{suffix}' for suffix in ('param', 'bin'))
        if done.returncode or not param.exists():
            raise UserError(f'{name} cannot be converted by pnnx: it stopped with status {done.returncode}')
        unknown = _unknown_operators(param.read_text())
        if unknown:
            raise UserError(f'{name} cannot be converted to ncnn, which lacks {", ".join(unknown)}')
        made = ncnn.Net()
        made.opt.num_threads = threads
        made.opt.use_fp16_packed = made.opt.use_fp16_storage = made.opt.use_fp16_arithmetic = False
        if made.load_param(str(param)) or made.load_model(str(weights)):
            raise UserError(f'{name} cannot be loaded by ncnn')
        return made


def _unknown_operators(param: str) -> list[str]:
    """Operators that pnnx left as PyTorch calls them, ``torch.flip`` or ``aten::flip``, after a header of two lines."""
    operators = [line.split()[0] for line in param.splitlines()[2:] if line.strip()]
    return sorted({operator for operator in operators if '.' in operator or ':' in operator})
