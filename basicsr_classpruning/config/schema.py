"""Schema of a whole options file, for training and for testing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field, model_validator

from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.config.datasets import Dataset, check_phases, check_training_set
from basicsr_classpruning.config.degradation import SecondOrderDegradation
from basicsr_classpruning.config.fields import Allowed, Count, CountOrZero, Section, Whole, refuse
from basicsr_classpruning.config.networks import ClassPruningNetwork, PlainNetwork
from basicsr_classpruning.config.training import (
    ClassPruningGANTrain,
    ClassPruningTestVal,
    ClassPruningTrain,
    ClassPruningVal,
    GANPaths,
    GuardedTrain,
    Logger,
    Paths,
    TestVal,
    Train,
    Val,
)
from basicsr_classpruning.data.degradations import registered_degradations

CLASSPRUNING_MODEL = 'ClassPruningModel'
GAN_MODEL = 'ClassPruningGANModel'
GUARDED_MODEL = 'GuardedSRModel'
PLAIN_MODEL = 'SRModel'
REALESRNET_MODEL = 'ClassPruningRealESRNetModel'
KNOWN_MODELS = (CLASSPRUNING_MODEL, GAN_MODEL, REALESRNET_MODEL, GUARDED_MODEL, PLAIN_MODEL, 'SwinIRModel')
"""Models whose options are known to the last key. Other models may read further keys."""

ModuleName = Annotated[str, Allowed('a module name')]


class DistParams(Section):
    """Distributed training; read with `--launcher slurm`."""

    backend: Literal['nccl', 'gloo'] = 'nccl'
    """Communication library of torch."""
    port: Annotated[Whole, Ge(1), Le(65535)] | None = None
    """Port of the main process."""


class Options(Section):
    """What files for training and for testing have in common."""

    name: str
    """Name of the experiment: results are written to `experiments/NAME` and `results/NAME` of the current folder.
    A name with `debug` in it shortens the run."""
    model_type: str = Field(json_schema_extra={'not': {'const': CLASSPRUNING_MODEL}})
    """`ClassPruningModel` for ClassPruning; `GuardedSRModel` (or BasicSR's `SRModel`) for a dense network."""
    scale: Count = 1
    """Output size divided by input size; 1 for denoising."""
    num_gpu: CountOrZero | Literal['auto'] = 'auto'
    """GPUs to use; 0 runs on the CPU, `auto` takes all there are."""
    manual_seed: Annotated[Whole, Ge(0), Le(2**31)] | None = None
    """Seed of all random numbers; null draws one."""
    custom_imports: list[ModuleName] = Field(default_factory=list)
    """Modules imported before names are looked up in the registries, e.g. `['my_project.my_arch']`."""
    datasets: dict[str, Dataset]
    """The data sets by phase: `train`, `val`, `val_1`, … in training; `test`, `test_1`, … in testing."""
    network_g: PlainNetwork
    """The network."""
    path: Paths = Paths()
    """Files to start from."""
    dist_params: DistParams | None = None
    """Distributed training; read with `--launcher slurm`."""
    find_unused_parameters: bool = False
    """Distributed training: search for parameters that a step did not use."""

    @model_validator(mode='after')
    def _agree(self) -> Options:
        name = self.name
        if not name.strip() or name in ('.', '..') or '/' in name or '\\' in name or not name.isprintable():
            raise refuse('name', f'{name!r} is not allowed; it names a folder: printable, without / and \\')
        if self.model_type in KNOWN_MODELS:
            self._check_image_model()
        return self

    def _check_image_model(self) -> None:
        """Checks across sections that hold for models that restore single images."""
        key, network = 'network_g', self.network_g
        if isinstance(network, ClassPruningNetwork):
            key, network = 'network_g.base', network.base
        elif network.type == 'ClassPruning':
            raise refuse(
                'model_type', f'{self.model_type!r} is not allowed with a ClassPruning network; {CLASSPRUNING_MODEL}'
            )
        reason = refusal(network.type)
        if reason is not None:
            text = f'{network.type!r} is not allowed with model_type {self.model_type}: {reason}'
            raise refuse(f'{key}.type', text)
        _check_scale(key, network, self.scale)
        for name, dataset in self.datasets.items():
            _check_degradation(name, dataset, self.scale)


class TrainingOptions(Options):
    """An options file for training a plain network."""

    train: Train
    """How the network is trained."""
    val: Val | None = None
    """Validation; null for none."""
    logger: Logger = Logger()
    """What is logged and saved."""

    @model_validator(mode='after')
    def _complete(self) -> TrainingOptions:
        check_phases(self.datasets, ('train', 'val'))
        check_training_set(self.datasets['train'], self.scale)
        return self


class TestingOptions(Options):
    """An options file for testing a plain network."""

    val: TestVal = TestVal()
    """What is measured and written."""

    @model_validator(mode='after')
    def _complete(self) -> TestingOptions:
        check_phases(self.datasets, ('test', 'val'))
        return self


class GuardedTrainingOptions(TrainingOptions):
    """An options file for training a plain network with mixed precision, gradient clipping and a guard."""

    model_type: Literal['GuardedSRModel']
    """`GuardedSRModel`."""
    train: GuardedTrain
    """How the network is trained."""


class ClassPruningTrainingOptions(TrainingOptions):
    """An options file for training a ClassPruning network."""

    model_type: Literal['ClassPruningModel']
    """`ClassPruningModel`."""
    network_g: ClassPruningNetwork  # type: ignore[assignment]  # narrower than the plain file's
    """The ClassPruning network."""
    train: ClassPruningTrain
    """How the network is trained."""
    val: ClassPruningVal | None = None
    """Validation; null for none."""

    @model_validator(mode='after')
    def _own_weights(self) -> ClassPruningTrainingOptions:
        if self.train.freeze_dense and self.network_g.weights == 'shared':
            text = 'true is not allowed with shared weights, which all candidates learn in; network_g.weights own'
            raise refuse('train.freeze_dense', text)
        return self


class ClassPruningTestingOptions(TestingOptions):
    """An options file for testing a ClassPruning network."""

    model_type: Literal['ClassPruningModel']
    """`ClassPruningModel`."""
    network_g: ClassPruningNetwork  # type: ignore[assignment]  # narrower than the plain file's
    """The ClassPruning network."""
    val: ClassPruningTestVal = ClassPruningTestVal()
    """What is measured and written."""


class GANTrainingOptions(ClassPruningTrainingOptions):
    """An options file for training a ClassPruning network against a discriminator."""

    model_type: Literal['ClassPruningGANModel']  # type: ignore[assignment]
    """`ClassPruningGANModel`."""
    network_d: PlainNetwork
    """The discriminator, e.g. `{type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 64, input_size: 128}`."""
    train: ClassPruningGANTrain
    """How the networks are trained."""
    path: GANPaths = GANPaths()
    """Files to start from."""


class GANTestingOptions(ClassPruningTestingOptions):
    """An options file for testing a ClassPruning network that was trained against a discriminator."""

    model_type: Literal['ClassPruningGANModel']  # type: ignore[assignment]
    """`ClassPruningGANModel`; `ClassPruningModel` does the same."""


class RealESRNetTrainingOptions(ClassPruningTrainingOptions, SecondOrderDegradation):
    """An options file for training a ClassPruning network on pictures that are degraded as in Real-ESRGAN."""

    model_type: Literal['ClassPruningRealESRNetModel']  # type: ignore[assignment]
    """`ClassPruningRealESRNetModel`; its training set is BasicSR's `RealESRGANDataset`."""

    @model_validator(mode='after')
    def _pool(self) -> RealESRNetTrainingOptions:
        train = self.datasets['train']
        batch = getattr(train, 'batch_size_per_gpu', None)
        if isinstance(batch, int) and batch > 0 and self.queue_size % batch:
            text = f'{self.queue_size} is not allowed; a multiple of the batch size ({batch})'
            raise refuse('queue_size', text)
        if self.gt_size % self.scale:
            raise refuse('gt_size', f'{self.gt_size} is not allowed; a multiple of scale ({self.scale})')
        return self


class RealESRNetTestingOptions(ClassPruningTestingOptions):
    """An options file for testing a ClassPruning network that was trained on pictures degraded as in Real-ESRGAN."""

    model_type: Literal['ClassPruningRealESRNetModel']  # type: ignore[assignment]
    """`ClassPruningRealESRNetModel`; `ClassPruningModel` does the same."""


def options_class(model_type: str, is_train: bool) -> type[Options]:
    """The schema of a file with this `model_type`, for training or testing."""
    training: dict[str, type[Options]] = {
        CLASSPRUNING_MODEL: ClassPruningTrainingOptions,
        GAN_MODEL: GANTrainingOptions,
        REALESRNET_MODEL: RealESRNetTrainingOptions,
        GUARDED_MODEL: GuardedTrainingOptions,
    }
    testing: dict[str, type[Options]] = {
        CLASSPRUNING_MODEL: ClassPruningTestingOptions,
        GAN_MODEL: GANTestingOptions,
        REALESRNET_MODEL: RealESRNetTestingOptions,
    }
    return training.get(model_type, TrainingOptions) if is_train else testing.get(model_type, TestingOptions)


def _check_scale(key: str, network: Any, scale: int) -> None:
    """`scale` against the network's own factor, where the file states one (``upscale``, or ``scale``)."""
    for name in ('upscale', 'scale'):
        own = network.model_extra.get(name)
        if isinstance(own, int) and own != scale:
            raise refuse(f'{key}.{name}', f'{own} is not allowed; the same as scale ({scale})')


def _check_degradation(name: str, dataset: Any, scale: int) -> None:
    kinds = registered_degradations()
    kind = kinds.get(getattr(getattr(dataset, 'degradation', None), 'type', ''))
    if kind is None:
        return
    if scale != 1 and not kind.rescales:
        others = ', '.join(other.type for other in kinds.values() if other.rescales)
        text = f'{kind.type!r} is not allowed with scale {scale}: it keeps the size of a picture; {others}, or scale 1'
        raise refuse(f'datasets.{name}.degradation.type', text)
    if scale == 1 and kind.rescales:
        raise refuse('scale', f'1 is not allowed with the {kind.type} degradation of datasets.{name}; 2 or more')
