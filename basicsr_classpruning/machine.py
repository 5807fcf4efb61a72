"""What a measured time depends on: the processor, its instruction sets, the libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

# Instruction sets that decide how fast convolutions are, of all that a processor names.
_FLAGS = (
    'avx', 'f16c', 'fma', 'avx2', 'avx_vnni', 'avx512f', 'avx512bw', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16',
    'amx_tile', 'amx_bf16', 'amx_int8', 'asimd', 'sve',
)  # fmt: skip
_PACKAGES = ('basicsr-classpruning', 'basicsr', 'torch', 'numpy', 'onnxruntime', 'openvino', 'nncf', 'ncnn')


def describe_machine() -> dict[str, Any]:
    """Processor, instruction sets, cores and library versions (None: not installed), ready for JSON."""
    found = _cpuinfo()
    flags = set((found.get('flags') or found.get('Features') or '').split())
    return {
        'processor': found.get('model name') or platform.processor() or platform.machine(),
        'instruction_sets': [name for name in _FLAGS if name in flags],
        'torch_instruction_set': torch.backends.cpu.get_cpu_capability(),
        'cores': os.cpu_count(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'python': platform.python_version(),
        'versions': {name: _version(name) for name in _PACKAGES},
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        with open('/proc/cpuinfo') as file:
            first = file.read().split('\n\n')[0]
    except OSError:
        return {}
    pairs = (line.partition(':') for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
