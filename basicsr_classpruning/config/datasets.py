"""Schema of the `datasets` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Le, Len
from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, create_model, model_validator

from basicsr_classpruning.config.fields import (
    Allowed,
    Count,
    CountOrZero,
    Section,
    SparseSection,
    Whole,
    refuse,
)
from basicsr_classpruning.config.problems import first_problem
from basicsr_classpruning.config.wording import listed, shown
from basicsr_classpruning.data.degradations import Degradation, Range, registered_degradations

# How pydantic's errors call the kinds of data sets.
_TAGS = {'DegradedImageDataset': '<degraded>', 'PairedImageDataset': '<paired>'}
_OTHER = '<other>'


class IoBackend(Section):
    """Where the pictures are read from."""

    type: Literal['disk', 'lmdb'] = 'disk'
    """`disk`: a folder of picture files; `lmdb`: a folder `*.lmdb` made by `tools/prepare_data.py`."""


class PairedIoBackend(IoBackend, SparseSection):
    """Where the pictures are read from."""

    readonly: bool | None = None
    """PairedImageDataset with lmdb: open the database for reading only (LMDB's default: true)."""
    lock: bool | None = None
    """PairedImageDataset with lmdb: lock the database against other processes (default: false)."""
    readahead: bool | None = None
    """PairedImageDataset with lmdb: let the system read ahead (default: false)."""

    @model_validator(mode='after')
    def _lmdb_only(self) -> PairedIoBackend:
        for key in ('readonly', 'lock', 'readahead'):
            if self.type == 'disk' and key in self.model_fields_set:
                raise refuse(key, 'is an option of type lmdb only')
        return self


class Loader(SparseSection):
    """Keys that BasicSR's data loader reads; validation reads pictures one by one and ignores the batch size."""

    batch_size_per_gpu: Count | None = None
    """Images in a batch, for each GPU (for each process on CPUs). Needed for training."""
    num_worker_per_gpu: CountOrZero | None = None
    """Processes that read pictures, for each GPU; 0 reads in the training process. Needed for training."""
    dataset_enlarge_ratio: Count = 1
    """How often the pictures are repeated in one epoch; large values save the start of an epoch on small sets."""
    prefetch_mode: Literal['cpu', 'cuda'] | None = None
    """Prefetch batches in a thread (`cpu`) or onto the GPU (`cuda`, needs `pin_memory: true`)."""
    num_prefetch_queue: Count = 1
    """Batches held ready by `prefetch_mode: cpu`."""
    pin_memory: bool = False
    """Page-locked memory for faster copies to a GPU."""
    persistent_workers: bool = False
    """Keep the reading processes from one epoch to the next."""
    use_shuffle: bool | None = None
    """Accepted because BasicSR's own files write it; training always shuffles."""


class Pictures(Loader):
    """Keys common to data sets of pictures."""

    name: str
    """Name in logs and result folders, e.g. `Set5`."""
    dataroot_gt: str
    """Folder (or LMDB) of the ground-truth pictures; `~` is the home folder."""
    io_backend: IoBackend = IoBackend()
    """Where the pictures are read from."""
    gt_size: Count | None = None
    """Side of the square crops of the ground truth in pixels, a multiple of `scale`. Needed for training."""
    use_hflip: bool = True
    """Flip crops at random (training)."""
    use_rot: bool = True
    """Turn crops by multiples of 90 degrees at random (training)."""


class DegradationOptions(SparseSection):
    """How clean pictures are degraded on the fly: a random strength for each crop in training, the same strengths
    every time in validation."""

    type: Annotated[str, Allowed(f'{", ".join(map(repr, registered_degradations()))} or one of your own')]
    """Name of a degradation; names from `custom_imports` count."""


class _OwnKeys(DegradationOptions):
    """Checks all keys of one degradation."""

    @model_validator(mode='before')
    @classmethod
    def _own_keys_only(cls, value: Any) -> Any:
        """Says of another degradation's key that it is one; null stands for none."""
        if not isinstance(value, dict):
            return value
        others = {option.key for kind in registered_degradations().values() for option in kind.options}
        for key in others - cls.model_fields.keys():
            if value.get(key) is not None:
                raise refuse(key, f'is not an option of degradation {value.get("type")}')
        return {key: item for key, item in value.items() if key not in others or key in cls.model_fields}

    @model_validator(mode='after')
    def _in_order(self) -> _OwnKeys:
        for key in type(self).model_fields:
            value = getattr(self, key)
            if isinstance(value, list) and value[0] > value[1]:
                raise refuse(key, f'{value} is not allowed; [least, greatest]')
        return self


def degradation_section(kind: type[Degradation]) -> type[DegradationOptions]:
    """The schema of one degradation's options, from what it says of itself."""
    fields: dict[str, Any] = {'type': (Literal[kind.type], Field(description=f'`{kind.type}`.'))}
    for option in kind.options:
        number: Any = Annotated[Whole if option.whole else float, Ge(option.least), Le(option.greatest)]
        values: Any = Annotated[list[number], Len(2, 2)] if isinstance(option, Range) else number
        fields[option.key] = (values, Field(description=f'{option.meaning[0].upper()}{option.meaning[1:]}.'))
    return create_model(f'{kind.__name__}Options', __base__=_OwnKeys, __doc__=f'{kind.summary}.', **fields)


DEGRADATIONS = {name: degradation_section(kind) for name, kind in registered_degradations().items()}
"""Schemas of this package's own degradations, by type."""


class OtherDegradation(DegradationOptions):
    """A degradation from `custom_imports`: keys beside `type` are its own."""

    model_config = ConfigDict(extra='allow')

    type: str = Field(json_schema_extra={'not': {'enum': list(DEGRADATIONS)}})
    """Name under which it is registered."""

    @model_validator(mode='after')
    def _registered(self) -> OtherDegradation:
        kinds = registered_degradations()
        if self.type not in kinds:
            raise refuse('type', f'{shown(self.type)} is not allowed; {listed([repr(name) for name in kinds])}')
        schema = degradation_section(kinds[self.type])
        try:
            schema.model_validate({'type': self.type, **(self.model_extra or {})})
        except ValidationError as error:
            problem = first_problem(error, schema)
            raise refuse(problem.key, problem.text) from None
        return self


def _degradation_tag(value: Any) -> str:
    kind = value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)
    return kind if isinstance(kind, str) and kind in DEGRADATIONS else _OTHER


_members: Any = tuple(
    Annotated[section, Tag(name)] for name, section in {**DEGRADATIONS, _OTHER: OtherDegradation}.items()
)
_AnyDegradation: Any = Annotated[
    Union[_members],  # noqa: UP007 — of members that are known only now
    Discriminator(_degradation_tag),
    Allowed('a mapping such as {type: noise, sigma: [0, 50]}'),
]


class DegradedImages(Pictures):
    """`DegradedImageDataset`: clean pictures, degraded on the fly."""

    type: Literal['DegradedImageDataset']
    """`DegradedImageDataset`."""
    degradation: _AnyDegradation
    """What is done to the clean pictures."""
    color: Literal['rgb', 'gray', 'y'] = 'rgb'
    """Three colour channels, one grey channel, or the luma channel Y (of YCbCr) alone."""
    shrink: Count = 1
    """Reduce the clean pictures by this factor before they are degraded: hides the artefacts of compressed ones."""


class PairedImages(Pictures):
    """`PairedImageDataset` of BasicSR: pairs of degraded and clean pictures."""

    type: Literal['PairedImageDataset']
    """`PairedImageDataset`."""
    dataroot_lq: str
    """Folder (or LMDB) of the degraded pictures; `~` is the home folder."""
    io_backend: PairedIoBackend = PairedIoBackend()
    """Where the pictures are read from."""
    meta_info_file: str | None = None
    """Text file that lists the pictures to use, one a line."""
    filename_tmpl: str = '{}'
    """Name of a degraded picture, `{}` stands for the clean one's, without the suffix; e.g. `'{}x2'`."""
    color: Literal['y'] | None = None
    """`y`: the luma channel alone."""
    mean: list[float] | None = None
    """Subtracted from each channel (pixel values 0 to 1)."""
    std: list[float] | None = None
    """Each channel is divided by it."""


class OtherDataset(SparseSection):
    """Any other data set of BasicSR's registry: keys beside `name` and `type` are the data set's own."""

    model_config = ConfigDict(extra='allow')

    name: str
    """Name in logs and result folders."""
    type: str = Field(json_schema_extra={'not': {'enum': list(_TAGS)}})
    """Name in BasicSR's data set registry; names from `custom_imports` count."""


def _tag(value: Any) -> str:
    kind = value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)
    return _TAGS.get(kind, _OTHER) if isinstance(kind, str) else _OTHER


Dataset = Annotated[
    Annotated[DegradedImages, Tag(_TAGS['DegradedImageDataset'])]
    | Annotated[PairedImages, Tag(_TAGS['PairedImageDataset'])]
    | Annotated[OtherDataset, Tag(_OTHER)],
    Discriminator(_tag),
]


def check_phases(datasets: dict[str, Any], prefixes: tuple[str, ...]) -> None:
    """Refuses data set keys that BasicSR would not use in this phase, e.g. `test_1` while training."""
    for key in datasets:
        if key.split('_')[0] not in prefixes or (key != 'train' and key.startswith('train')):
            names = ' or '.join(prefix if prefix == 'train' else f'{prefix}, {prefix}_1, …' for prefix in prefixes)
            raise refuse(f'datasets.{key}', f'is not a data set of this phase; allowed are {names}')
    if prefixes[0] == 'train' and 'train' not in datasets:
        raise refuse('datasets.train', 'is missing; the pictures to train on')
    if not datasets:
        raise refuse('datasets', 'is empty; at least one data set, e.g. test_1')


def check_training_set(dataset: Section, scale: int) -> None:
    """Refuses a training set that lacks what a batch needs, or whose crops `scale` does not divide."""
    if not isinstance(dataset, Pictures):
        return
    for key in ('gt_size', 'batch_size_per_gpu', 'num_worker_per_gpu'):
        if getattr(dataset, key) is None:
            raise refuse(f'datasets.train.{key}', 'is missing; a whole number')
    if dataset.gt_size is not None and dataset.gt_size % scale:
        raise refuse('datasets.train.gt_size', f'{dataset.gt_size} is not allowed; a multiple of scale ({scale})')
    if dataset.prefetch_mode == 'cuda' and not dataset.pin_memory:
        raise refuse('datasets.train.pin_memory', 'false is not allowed with prefetch_mode cuda; true')
