"""Carries networks to other programs: BasicSR and spandrel, safetensors, ONNX."""

from basicsr_classpruning.export.basicsr import export_basicsr
from basicsr_classpruning.export.onnx import export_onnx
from basicsr_classpruning.export.onnx_folder import export_onnx_folder
from basicsr_classpruning.export.safetensors import export_compact_safetensors, export_safetensors
from basicsr_classpruning.export.weights import plain_state_dict

__all__ = [
    'export_basicsr',
    'export_compact_safetensors',
    'export_onnx',
    'export_onnx_folder',
    'export_safetensors',
    'plain_state_dict',
]
