"""Engines that make a pruned layer really faster: N:M kernels for the CPU."""

from basicsr_classpruning.kernels.acceleration import LayerPlan, accelerate, plan
from basicsr_classpruning.kernels.choice import Fastest
from basicsr_classpruning.kernels.native import available, describe
from basicsr_classpruning.kernels.patches import PatchedNet

__all__ = ['Fastest', 'LayerPlan', 'PatchedNet', 'accelerate', 'available', 'describe', 'plan']
