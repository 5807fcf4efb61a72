"""Remembers what the candidates left of the images seen last."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

_IMAGES = 1000  # older errors are those of candidates that have changed since
_VALUES = 2**24  # in half precision: 32 MB, which a training state has to hold too


class ErrorMemory:
    """Images and the errors that the candidates left in them.

    Measuring errors costs a run of every candidate, learning from them next to nothing. So the classifier learns from
    each image several times: from a part of the memory in every step. What it holds is the same in all processes of a
    distributed run.
    """

    def __init__(self) -> None:
        self.images = self.errors = torch.empty(0)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, images: Tensor, errors: Tensor) -> None:
        """Takes images ``(B, C, H, W)`` and errors ``(B, K, h, w)``; the oldest give way.

        Images with an error that is not a number are left out: they would spoil step after step.
        """
        images, errors = _of_all_processes(images.half()), _of_all_processes(errors)
        fine = errors.isfinite().flatten(1).all(1)
        images, errors = images[fine], errors[fine]
        if not len(images):
            return
        if self.images.shape[1:] != images.shape[1:] or self.errors.shape[1:] != errors.shape[1:]:
            self.images, self.errors = images[:0], errors[:0]  # the first ones, or a resumed run has other crops
        capacity = max(min(_IMAGES, _VALUES // images[0].numel()), len(images))
        self.images = torch.cat([self.images, images])[-capacity:]
        self.errors = torch.cat([self.errors, errors])[-capacity:]

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Some of the images with their errors, at most ``count``, none twice."""
        places = torch.randperm(len(self))[:count].to(self.images.device)
        return self.images[places].float(), self.errors[places]

    def state_dict(self) -> dict[str, Tensor]:
        return {'images': self.images, 'errors': self.errors}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Raises ValueError for images without errors."""
        if len(state['images']) != len(state['errors']):
            raise ValueError(f'{len(state["images"])} images with {len(state["errors"])} errors')
        self.images, self.errors = state['images'].to(device), state['errors'].to(device)


def _of_all_processes(values: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
