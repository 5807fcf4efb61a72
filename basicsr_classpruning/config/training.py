"""Schema of the `train`, `val` and `logger` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Len, Lt, MultipleOf
from pydantic import Field, model_validator

from basicsr_classpruning.config.fields import (
    Allowed,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Rate,
    Ratio,
    RatioBelowOne,
    Registered,
    Section,
    Whole,
    refuse,
)


class Optimizer(Registered):
    """The optimiser of the network."""

    type: str
    """`Adam`."""
    lr: Rate
    """Learning rate at the start."""
    weight_decay: NotNegative | None = None
    """Weight decay (torch's default: 0)."""
    betas: Annotated[list[RatioBelowOne], Len(2, 2)] | None = None
    """Decay rates of Adam's running means (torch's default: `[0.9, 0.999]`)."""


class Scheduler(Registered):
    """How the learning rate falls."""

    type: str
    """`MultiStepLR`, `MultiStepRestartLR` or `CosineAnnealingRestartLR`."""
    milestones: list[CountOrZero] | None = None
    """Multi-step: iterations at which the learning rate is multiplied by `gamma`."""
    gamma: Positive | None = None
    """Multi-step: factor at each milestone (default: 0.1)."""
    restarts: list[CountOrZero] | None = None
    """Multi-step: iterations at which the learning rate starts again (default: `[0]`)."""
    restart_weights: list[NotNegative] | None = None
    """Factor of the learning rate at each restart, or in each period (default: `[1]`)."""
    periods: list[Count] | None = None
    """Cosine: lengths of the periods in iterations; together at least `total_iter`."""
    eta_min: NotNegative | None = None
    """Cosine: the least learning rate (default: 0)."""

    def check(self, total_iter: int) -> None:
        """Refuses what would stop the training at a later iteration."""
        restarts = self.periods if self.type == 'CosineAnnealingRestartLR' else self.restarts or [0]
        if restarts is not None and len(restarts) != len(self.restart_weights or [1]):
            raise refuse('scheduler.restart_weights', f'needs {len(restarts)} values, one for each restart or period')
        if self.periods is not None and sum(self.periods) < total_iter:
            text = f'{self.periods} is not allowed; together at least total_iter ({total_iter})'
            raise refuse('scheduler.periods', text)


class Loss(Registered):
    """A loss of BasicSR's registry; other keys go to its constructor."""

    loss_weight: NotNegative | None = None
    """Factor of the term in the total loss (default: the loss's own)."""


class BudgetLoss(Loss):
    """Holds the expected average MACs at a target."""

    type: str = 'ComputeBudgetLoss'
    """Name in BasicSR's loss registry."""
    target: Ratio
    """Wanted average MACs as a fraction of the dense network's."""


class ClassLoss(Loss):
    """Makes each image's class distribution confident while the batch keeps using several classes."""

    type: str = 'ClassificationLoss'
    """Name in BasicSR's loss registry."""


class DistillLoss(Loss):
    """Pulls the candidates' outputs towards the dense network's."""

    type: str = 'DistillationLoss'
    """Name in BasicSR's loss registry."""


class DifficultyLoss(Loss):
    """Teaches the classifier the errors that the candidates leave."""

    type: str = 'ErrorRatioLoss'
    """Name in BasicSR's loss registry."""


class PerceptualLoss(Registered):
    """BasicSR's perceptual loss, or another that returns a perceptual and a style term."""


class Train(Section):
    """Training as BasicSR does it."""

    total_iter: Count
    """Length of the training in iterations."""
    warmup_iter: Annotated[Whole, Ge(-1)] = -1
    """Iterations over which the learning rate rises from 0; -1 for none."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0
    """Decay of the exponential moving average of the weights, e.g. 0.999; 0 keeps none. Unlike BasicSR's own it holds
    nothing of the weights before the first step."""
    optim_g: Optimizer
    """The optimiser of the network."""
    scheduler: Scheduler
    """How the learning rate falls."""
    pixel_opt: Loss | None = None
    """Loss between output and ground truth, e.g. `{type: L1Loss, loss_weight: 1.0}`."""
    perceptual_opt: PerceptualLoss | None = None
    """Perceptual loss between output and ground truth."""

    @model_validator(mode='after')
    def _agree(self) -> Train:
        _check_losses(self)
        self.scheduler.check(self.total_iter)
        return self


class Stages(Section):
    """Lengths of the three stages of a ClassPruning training in iterations; 0 leaves one out."""

    supernet: CountOrZero = 0
    """Each batch is shared out among the candidates, so that all of them learn."""
    classifier: CountOrZero = 0
    """The candidates rest; the classifier learns from their errors."""
    joint: CountOrZero = 0
    """Routed batches: the candidates and the classifier learn together."""


class GuardedTrain(Train):
    """Training with mixed precision and a guard against numbers that are none."""

    amp: Literal['bf16', 'fp16'] | None = None
    """Mixed precision; null is single precision. `bf16` is for GPUs and for CPUs with AVX-512 or AMX; on other CPUs,
    which would emulate it, many times slower, it is single precision too. Its three digits are too few for networks of
    nearly clean pictures: a published denoiser loses 0.4 dB at σ = 20 and 1.3 dB at σ = 3 by them."""
    channels_last: bool = True
    """Keep images in memory pixel by pixel: faster convolutions on CPUs and on GPUs with mixed precision."""
    grad_clip: Positive | None = None
    """Greatest norm of the gradient; larger ones are scaled down. null: no limit."""
    on_nan: Literal['skip', 'stop'] = 'stop'
    """What to do about a loss or gradient that is not a number, or a loss that has exploded (10,000 times what it was):
    leave the step out, or stop the run."""


class ClassPruningTrain(GuardedTrain):
    """Training of a ClassPruning network."""

    total_iter: Count | None = None  # type: ignore[assignment]  # filled in by the validator
    """Length of the training in iterations; may be left out where `stages` says it."""
    stages: Stages | None = None
    """Lengths of the stages in iterations, together `total_iter`; null trains the candidates only (`supernet`)."""
    split: Literal['turn', 'none'] = 'turn'
    """How the supernet stage shares out a batch: `turn` (round-robin) among all candidates in turn, `none` (sandwich)
    not at all. Then every candidate restores every image, and the classifier learns beside them; a step of K candidates
    costs K times as much, so make the batch smaller."""
    sparse_batch: Count | None = None
    """With `split: none`: images of a batch that all candidates restore; the densest one restores the others too. It
    has the least to learn, so few images in a step leave it furthest behind. null: all images."""
    patch: Annotated[Count, MultipleOf(8), Allowed('a multiple of 8')] | None = None
    """With `split: none`: in every second step, patches of this side (in pixels of the degraded image, a multiple of 8)
    are dealt to the candidates by chance and restored together, mixed inside the layers, as `restore --patch` runs
    them. null: every candidate learns by itself alone."""
    mask_interval: CountOrZero = 10
    """Shared weights: iterations between two rankings by importance in the first two thirds of the training; then, and
    with 0 from the start, the masks stay."""
    srste_decay: NotNegative = 2e-4
    """Decay of pruned weights during training (SR-STE), added to their gradient."""
    difficulty_opt: DifficultyLoss = DifficultyLoss()
    """What the classifier learns: the candidates' errors."""
    budget_opt: BudgetLoss | None = None
    """Holds the expected average MACs at a target."""
    class_opt: ClassLoss | None = None
    """Keeps the classifier confident and all classes in use."""
    distill_opt: DistillLoss | None = None
    """Pulls the candidates' outputs towards the dense network's."""
    freeze_dense: bool = False
    """Whether nothing trains that the dense network computes with: the sparse candidates' own weights alone do. For a
    published network that is to stay as it is, and for candidates that learn from it with `distill_opt`."""
    classifier_lr: Rate = 5e-3
    """Learning rate of the classifier."""
    classifier_share: Ratio = 0.25
    """Share of each batch on which the candidates' errors are measured in the joint stage."""
    explore: RatioBelowOne = 0.1
    """Share of images given a random candidate in the joint stage."""
    on_collapse: Literal['recover', 'stop', 'warn'] = 'recover'
    """What to do when the classifier sends all images to one class: start it anew, stop the run, or warn only."""

    @model_validator(mode='after')
    def _agree(self) -> ClassPruningTrain:
        if self.stages is None:
            if self.total_iter is None:
                raise refuse('total_iter', 'is missing; a whole number of at least 1, unless stages are given')
            self.stages = Stages(supernet=self.total_iter)
        total = self.stages.supernet + self.stages.classifier + self.stages.joint
        if total == 0:
            raise refuse('stages', 'all lengths are 0; at least one stage has iterations')
        if self.total_iter not in (None, total):
            raise refuse('total_iter', f'{self.total_iter} is not allowed; the sum of the stages ({total}), or none')
        self.total_iter = total
        if self.sparse_batch is not None and self.split != 'none':
            raise refuse('sparse_batch', f'is not allowed with split {self.split}; split none')
        if self.patch is not None and self.split != 'none':
            raise refuse('patch', f'is not allowed with split {self.split}; split none')
        _check_losses(self)
        self.scheduler.check(total)
        return self


class GANLoss(Loss):
    """The adversarial loss."""

    type: str = 'GANLoss'
    """Name in BasicSR's loss registry."""
    gan_type: Literal['vanilla', 'lsgan', 'wgan', 'wgan_softplus', 'hinge']
    """Which one; SRGAN and ESRGAN use `vanilla`."""


class ClassPruningGANTrain(ClassPruningTrain):
    """Training of a ClassPruning network against a discriminator."""

    gan_opt: GANLoss
    """Loss between the discriminator's predictions and what they should be."""
    adversary: Literal['standard', 'relativistic'] = 'standard'
    """What the discriminator compares: each image by itself as in SRGAN, or with the other kind's mean as in ESRGAN."""
    optim_d: Optimizer
    """The optimiser of the discriminator."""
    net_d_iters: Literal[1] = 1
    """Accepted because BasicSR's own files write it; the candidates learn in every iteration."""
    net_d_init_iters: Literal[0] = 0
    """Accepted because BasicSR's own files write it; the candidates learn from the first iteration on."""


def _check_losses(train: Train) -> None:
    if train.pixel_opt is None and train.perceptual_opt is None:
        raise refuse('pixel_opt', 'is missing; a loss, e.g. {type: L1Loss, loss_weight: 1.0}')


class Metric(Registered):
    """A metric of BasicSR's registry; other keys go to it, e.g. `test_y_channel: true`."""

    crop_border: CountOrZero | None = None
    """Pixels left out at each border; usually `scale` for super-resolution."""
    test_y_channel: bool | None = None
    """Measure on the luma channel Y (of YCbCr) only (default: false)."""
    better: Literal['higher', 'lower'] | None = None
    """Which values count as better (default: higher)."""


class TestVal(Section):
    """Validation while testing."""

    __test__ = False  # not a test case for pytest

    save_img: bool = False
    """Whether the restored pictures are written."""
    suffix: str | None = None
    """Added to the names of written pictures; null adds the experiment's name."""
    metrics: dict[str, Metric] | None = None
    """Metrics by a name of your choice, e.g. `psnr: {type: calculate_psnr, crop_border: 2, test_y_channel: true}`."""
    pbar: bool = False
    """Show a progress bar."""


class Val(TestVal):
    """Validation while training."""

    val_freq: Count
    """Iterations between two validations."""


class ClassPruningTestVal(TestVal):
    """Validation of a ClassPruning network while testing."""

    candidates: bool = True
    """Also measure each fixed candidate."""
    budgets: list[Ratio] = Field(default_factory=list)
    """Also measure routing to these budgets: average MACs as fractions of the dense network's, e.g. `[0.5, 0.7]`."""


class ClassPruningVal(ClassPruningTestVal, Val):
    """Validation of a ClassPruning network while training."""


class Wandb(Section):
    """Weights & Biases, fed from TensorBoard."""

    project: str | None = None
    """Project name; null switches it off."""
    resume_id: str | None = None
    """Run to continue."""


class Logger(Section):
    """What is logged and saved while training."""

    print_freq: Count = 100
    """Iterations between two lines of the log."""
    save_checkpoint_freq: Count = 5000
    """Iterations between two checkpoints."""
    use_tb_logger: bool = False
    """Write TensorBoard files to `tb_logger/`."""
    wandb: Wandb | None = None
    """Weights & Biases; needs `use_tb_logger: true`."""

    @model_validator(mode='after')
    def _agree(self) -> Logger:
        if self.wandb is not None and self.wandb.project is not None and not self.use_tb_logger:
            raise refuse('use_tb_logger', 'false is not allowed with wandb, which is fed from TensorBoard; true')
        return self


class Paths(Section):
    """Files to start from."""

    pretrain_network_g: str | None = None
    """Checkpoint to start from; for ClassPruning a dense checkpoint of the base network, or a ClassPruning one."""
    param_key_g: str | None = 'params'
    """Which weights of the checkpoint: `params`, `params_ema`, or where else they are in a file of another program."""
    strict_load_g: bool = True
    """Whether the checkpoint's keys must fit the network's exactly; false loads what fits, and logs what does not."""
    resume_state: str | None = None
    """Training state to continue from, e.g. `experiments/NAME/training_states/5000.state`."""
    ignore_resume_networks: list[str] | str | None = None
    """Networks whose weights are not taken from the resumed run, e.g. `network_g`."""


class GANPaths(Paths):
    """Files to start from, of a training against a discriminator."""

    pretrain_network_d: str | None = None
    """Checkpoint of the discriminator to start from."""
    param_key_d: str | None = 'params'
    """Which weights of it: `params`, or null for a raw state dict."""
    strict_load_d: bool = True
    """Whether its keys must fit the discriminator's exactly."""
