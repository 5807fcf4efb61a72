"""ClassPruning: the dynamic N:M wrapper around a base network."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from basicsr_classpruning.archs.adapters import fitting_params
from basicsr_classpruning.archs.base_network import build_base, input_channels, load_fitting, load_what_fits
from basicsr_classpruning.archs.sizes import Sizes, probe_sizes, run_padded
from basicsr_classpruning.archs.value_range_arch import in_range
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.sparsity import (
    DENSE,
    NetworkMacs,
    Pattern,
    choose_layers,
    freeze,
    network_macs,
    sparse_layers,
    sparsify,
)
from basicsr_classpruning.sparsity.budget import LEAST_ERROR, reference_errors, solve_budget

# Until it is learnt, all MACs of the dense network are worth about 1 dB.
FIRST_LOG_PRICE = -1.4
# Difference in MACs, as a fraction of the dense ones, that makes one candidate e times as probable as another.
_SOFTNESS = 0.1
_REFERENCE_SIZE = 64  # side of the images for which costs are counted; their ratios hardly depend on it


@ARCH_REGISTRY.register()
class ClassPruning(nn.Module):
    """One base network, its sparse subnetworks, and the classifier that picks one of them for each image.

    In eval mode every image of a batch is routed by itself. Candidates are plain copies of the base network, made
    once and kept until the weights change, so several threads may restore at the same time.

    Args:
        base: options of the base network, any entry of ``ARCH_REGISTRY`` for single images.
        candidates: patterns ``'N:M'`` with one M, from cheapest to dearest.
        block: output channels that share a mask.
        share_taps: whether all kernel taps of an output channel (block) share it too.
        skip: regular expressions; layers whose name one of them matches stay dense.
        classifier: options of the classifier, ``DifficultyClassifier`` by default.
        weights: ``'shared'``: one weight set with nested masks. ``'own'``: own weights for each sparse candidate.
        layers: regular expression → patterns that replace ``candidates`` in the layers it matches.
        value_range: what white is to the base network, 1 or 255; the options of this one have it in ``base``.
        base_net: the base network itself, where it cannot be built from options.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        candidates: Sequence[str],
        block: int = 1,
        share_taps: bool = False,
        skip: Sequence[str] = (),
        classifier: Mapping[str, Any] | None = None,
        weights: str = 'shared',
        layers: Mapping[str, Sequence[str]] | None = None,
        value_range: float = 1,
        base_net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        base = in_range(base, value_range)
        if weights not in ('shared', 'own'):
            raise UsageError(f'network_g.weights: {weights!r} is not allowed; shared or own')
        classifier = dict(classifier or {'type': 'DifficultyClassifier'})
        self.options: dict[str, Any] = {
            'type': 'ClassPruning',
            'base': deepcopy(dict(base)),
            'candidates': list(candidates),
            'block': block,
            'share_taps': share_taps,
            'skip': list(skip),
            'classifier': deepcopy(classifier),
            'weights': weights,
            'layers': {key: list(value) for key, value in (layers or {}).items()},
        }
        self.candidates = tuple(candidates)
        _check_expressions(skip, 'network_g.skip')
        _check_expressions(layers or {}, 'network_g.layers')
        patterns = _parse_ladder(candidates, block, share_taps, 'network_g.candidates')
        layer_patterns = {
            expression: _parse_ladder(ladder, block, share_taps, f'network_g.layers.{expression}')
            for expression, ladder in (layers or {}).items()
        }
        for expression, ladder in layer_patterns.items():
            if len(ladder) != len(patterns):
                raise UsageError(f'network_g.layers.{expression}: {len(patterns)} patterns are needed, one a candidate')
        self.base = build_base(base) if base_net is None else base_net
        self.num_in_ch = input_channels(self.base, base)
        self.choices = tuple(choose_layers(self.base, patterns, skip, layer_patterns))
        if not any(choice.patterns for choice in self.choices):
            reasons = '; '.join(sorted({choice.reason for choice in self.choices})) or 'it has no such layers'
            raise UsageError(
                f'network_g: no layer of {base.get("type")} can be pruned to {", ".join(candidates)}: {reasons}'
            )
        self.selection = sparsify(self.base, self.choices, weights == 'own')
        name = classifier.pop('type')
        if name not in ARCH_REGISTRY:
            raise UsageError(f'network_g.classifier.type: {name!r} is not in ARCH_REGISTRY')
        self.classifier = ARCH_REGISTRY.get(name)(num_in_ch=self.num_in_ch, num_classes=len(candidates), **classifier)
        # What the dense network's MACs cost, as a share of the picture's error: the router maximises score − price ·
        # cost.
        self.log_price = nn.Parameter(torch.tensor(FIRST_LOG_PRICE))
        self.budget: float | None = None
        self._reset_caches()

    # ---------------------------------------------------------------- caches

    def _reset_caches(self) -> None:
        self._frozen: dict[int, nn.Module] = {}
        self._sizes: Sizes | None = None
        self._reference: NetworkMacs | None = None
        self._lock = threading.RLock()

    def drop_frozen(self) -> None:
        """Forgets the candidate networks; to be called when weights were changed in place in eval mode."""
        with self._lock:
            self._frozen = {}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ('_frozen', '_lock'):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._frozen = {}
        self._lock = threading.RLock()

    def train(self, mode: bool = True) -> ClassPruning:
        self.drop_frozen()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> ClassPruning:
        self.drop_frozen()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_frozen()  # here, because loading a module that holds this one comes by too
        super()._load_from_state_dict(*args, **kwargs)

    # ------------------------------------------------------------ candidates

    def candidate_index(self, candidate: str | int) -> int:
        """Index of a candidate given as ``'2:4'`` or as its index. Raises UsageError for others."""
        if isinstance(candidate, str) and candidate in self.candidates:
            return self.candidates.index(candidate)
        if isinstance(candidate, int) and 0 <= candidate < len(self.candidates):
            return candidate
        raise UsageError(f'candidate {candidate!r} is not one of this network: {", ".join(self.candidates)}')

    def frozen(self, candidate: str | int) -> nn.Module:
        """The base network as one candidate: plain layers with zeros in place, eval mode. Kept until weights change."""
        return self._frozen_at(self.candidate_index(candidate))

    def frozen_dense(self) -> nn.Module:
        """The unpruned base network, whether or not it is a candidate."""
        return self._frozen_at(DENSE)

    def _frozen_at(self, index: int) -> nn.Module:
        with self._lock:
            if index not in self._frozen:
                self._frozen[index] = freeze(self.base, index)
            return self._frozen[index]

    def patterns(self, candidate: str | int) -> dict[str, Pattern]:
        """Pattern of each layer that is sparse in a candidate, by the layer's name in the base network."""
        index = self.candidate_index(candidate)
        return {
            choice.name: choice.patterns[index]
            for choice in self.choices
            if choice.patterns and not choice.patterns[index].is_dense
        }

    def macs(self, height: int, width: int) -> NetworkMacs:
        """MACs of one image of the given size, counted; padding that the base network needs is included."""
        size = (self.num_in_ch, self.sizes.padded(height), self.sizes.padded(width))
        return network_macs(self.frozen_dense(), self.classifier, self.choices, len(self.candidates), size)

    @property
    def reference_macs(self) -> NetworkMacs:
        """MACs of a 64×64 image, counted once; those of other sizes are in proportion to the pixels."""
        with self._lock:
            if self._reference is None:
                self._reference = self.macs(_REFERENCE_SIZE, _REFERENCE_SIZE)
            return self._reference

    @property
    def sizes(self) -> Sizes:
        """Which image sizes the base network takes, and its scale; found once."""
        with self._lock:
            if self._sizes is None:
                self._sizes = probe_sizes(self.frozen_dense(), self.num_in_ch)
            return self._sizes

    @property
    def scale(self) -> int:
        """Output size over input size: 1 for denoising, 4 for ×4 super-resolution."""
        return self.sizes.scale

    # --------------------------------------------------------------- routing

    def scores(self, x: Tensor) -> Tensor:
        """Minus the error predicted for each candidate, ``(B, K)``, below 0, of images ``(B, C, H, W)`` in [0, 1]."""
        return self.classifier(x)

    def score_map(self, x: Tensor) -> Tensor:
        """Scores of the parts of images, ``(B, K, h, w)``, whose means are the scores.

        A classifier that knows no parts gives those of whole images, ``(B, K, 1, 1)``.
        """
        if hasattr(self.classifier, 'score_map'):
            return self.classifier.score_map(x)
        return self.scores(x)[:, :, None, None]

    def costs(self) -> Tensor:
        """Each candidate's MACs, the classifier's included, as a fraction of the dense ones: ``(K,)``."""
        return torch.tensor(self.reference_macs.costs, device=self.log_price.device)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class probabilities ``(B, K)`` at the learnt price, differentiable in scores and price.

        Args:
            scores: relative ones, see ``image_scores``.
        """
        return torch.softmax((scores / self.log_price.exp() - self.costs()) / _SOFTNESS, dim=1)

    def route(self, scores: Tensor) -> Tensor:
        """Difficulty classes ``(B,)``: of the best trade at the learnt price, or, where ``budget`` is set, of the best
        total whose average MACs meet it.

        Args:
            scores: relative ones, ``(B, K)``; see ``image_scores`` for images, ``picture_scores`` for tiles of one.
        """
        if self.budget is not None:
            costs = np.array(self.reference_macs.costs)
            classes = solve_budget(scores.detach().double().cpu().numpy(), costs, np.ones(len(scores)), self.budget)
            return torch.from_numpy(classes).to(scores.device)
        return self.probabilities(scores).argmax(dim=1)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Difficulty classes ``(B,)`` of images ``(B, C, H, W)`` in [0, 1]."""
        return self.route(image_scores(self.scores(x)))

    def restore_with(self, x: Tensor, candidate: str | int) -> Tensor:
        """Restores images ``(B, C, H, W)`` with one candidate."""
        return run_padded(self.frozen(candidate), x, self.sizes)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """Restores each image with a candidate of its own.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].
            classes: the candidate of each image, ``(B,)``; the classifier decides where it is left out.

        Returns:
            Restored images ``(B, C', H · scale, W · scale)`` in the order of ``x``; in training mode with gradients.
        """
        if classes is None:
            classes = self.classify(x)
        run = self.run_sparse if self.training else self.restore_with
        used = classes.unique().tolist()
        if len(used) == 1:
            return run(x, used[0])
        members = [(classes == candidate).nonzero()[:, 0] for candidate in used]
        outputs = torch.cat([run(x[index], candidate) for candidate, index in zip(used, members)])
        order = torch.cat(members)
        return outputs[torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))]

    def run_sparse(self, x: Tensor, candidate: int) -> Tensor:
        """Restores images with the weights as they are now, differentiable. Not safe in several threads.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].
            candidate: index of a candidate, or ``sparsity.DENSE``.
        """
        self.selection.candidate = candidate
        try:
            return run_padded(self.base, x, self.sizes)
        finally:
            self.selection.candidate = DENSE

    # --------------------------------------------------------------- weights

    @torch.no_grad()
    def rank_by_magnitude(self) -> None:
        """Renews the nested masks of shared weights from the weights as they are now."""
        for _, layer in sparse_layers(self.base):
            layer.rank_by_magnitude()
        self.drop_frozen()

    @torch.no_grad()
    def load_params(self, params: Mapping[str, Tensor], strict: bool = True) -> None:
        """Loads a ClassPruning state dict, or a dense one of the base network from which all candidates start.

        Args:
            params: in the names of the network, or of the file that it comes from.
            strict: as in ``nn.Module.load_state_dict``; without, what fits is loaded (``load_what_fits``).

        Raises UserError with one line where keys, shapes or zeros do not fit.
        """
        load = load_fitting if strict else load_what_fits
        own_keys = self.state_dict().keys()
        if any(key.startswith('base.') and key in own_keys for key in params):
            load(self, params)
            for name, layer in sparse_layers(self.base):
                broken = layer.broken_patterns()
                if broken:
                    raise UserError(f'weights do not fit the network: {name} keeps more of them than {broken[0]}')
            return
        candidates_only = {k: v for k, v in self.base.state_dict().items() if _is_candidate_key(self.base, k)}
        wanted = self.base.state_dict().keys() - candidates_only.keys()
        load(self.base, {**fitting_params(self.options['base'], params, wanted), **candidates_only})
        for _, layer in sparse_layers(self.base):
            layer.reset_candidates()
        self.drop_frozen()


def image_scores(scores: Tensor) -> Tensor:
    """Scores ``(B, K)`` of images relative to what the dearest candidate but one is predicted to leave in each.

    At most 0: minus the share of it that the others add to the dearest one's. See ``sparsity.budget.picture_scores``.
    """
    return (scores - scores[:, -1:]) / reference_errors(-scores)[:, None].clamp(min=LEAST_ERROR)


def _is_candidate_key(base: nn.Module, key: str) -> bool:
    """Whether a state-dict key of the base network belongs to its candidates, not to the dense network."""
    return any(
        key.startswith((f'{name}.ranks', f'{name}.biases.', f'{name}.weights.')) for name, _ in sparse_layers(base)
    )


def _check_expressions(expressions: Iterable[str], key: str) -> None:
    """Raises UsageError naming the option where one is no regular expression."""
    for expression in expressions:
        try:
            re.compile(expression)
        except (re.error, TypeError) as error:
            raise UsageError(f'{key}: {expression!r} is no regular expression: {error}') from None


def _parse_ladder(candidates: Sequence[str], block: int, share_taps: bool, key: str) -> list[Pattern]:
    """Parses patterns of one M, cheapest first; raises UsageError naming the option."""
    try:
        patterns = [Pattern.parse(text, block, share_taps) for text in candidates]
    except ValueError as error:
        raise UsageError(f'{key}: {error}') from None
    if not patterns:
        raise UsageError(f'{key}: at least one pattern such as "2:4" is needed')
    if len({pattern.m for pattern in patterns}) > 1:
        raise UsageError(f'{key}: {", ".join(candidates)} must all have the same M')
    if key == 'network_g.candidates' and any(a.n >= b.n for a, b in itertools.pairwise(patterns)):
        raise UsageError(f'{key}: {", ".join(candidates)} must go from cheapest to dearest, each once')
    return patterns
