"""ClassPruning: the dynamic N:M wrapper around a base network."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

from basicsr_classpruning.archs.adapters import fitting_params
from basicsr_classpruning.archs.base_network import build_base, find_inputs, load_fitting, load_what_fits
from basicsr_classpruning.archs.one_image_arch import as_one_image
from basicsr_classpruning.archs.value_range_arch import ValueRange, in_range
from basicsr_classpruning.errors import UsageError, UserError
from basicsr_classpruning.once import Once
from basicsr_classpruning.routing.ladder import Candidate, Ladder, LadderError, SparseCandidate
from basicsr_classpruning.routing.network import RoutedNetwork, Subnetwork
from basicsr_classpruning.routing.price import FIRST_LOG_PRICE, probabilities
from basicsr_classpruning.routing.router import Router
from basicsr_classpruning.sizes import Inputs, run_padded
from basicsr_classpruning.sparsity import (
    NetworkMacs,
    Pattern,
    choose_layers,
    count_by_module,
    freeze,
    network_macs,
    sparse_layers,
    sparsify,
)
from basicsr_classpruning.sparsity.layers import SparseLayer
from basicsr_classpruning.sparsity.mixture import NOTHING, Mixture
from basicsr_classpruning.sparsity.orientation import channels_of, groups_of

CANDIDATE_PARTS = ('ranks', 'biases.', 'weights.', 'weight_scales', 'input_scale', 'input_zero')
"""What the keys of a sparse layer's state dict begin with that are its candidates', not the dense layer's."""

_log = logging.getLogger('basicsr_classpruning')


@ARCH_REGISTRY.register()
class ClassPruning(nn.Module):
    """One base network, its sparse subnetworks, and the classifier that picks one of them for each image.

    In eval mode every image of a batch is routed by itself. Subnetworks are plain copies of the base network, made
    once and kept until the weights change, so several threads may restore at the same time.

    Args:
        base: options of the base network, any entry of ``ARCH_REGISTRY`` for single images.
        candidates: the ladder: patterns ``'N:M'`` with one M, from the sparsest to the densest.
        block: output channels that share a mask.
        share_taps: whether all kernel taps of an output channel (block) share it too.
        unit: neighbouring input channels that are kept or dropped together: 1, 2 or 4.
        skip: regular expressions; layers whose name one of them matches stay dense.
        classifier: options of the classifier, ``BandClassifier`` by default.
        weights: ``'shared'``: one weight set with nested masks. ``'own'``: own weights for each sparse candidate.
        fp32: regular expressions of layers that candidates of 8-bit integers compute in float32.
        layers: regular expression → patterns that replace ``candidates`` in the layers it matches.
        value_range: what white is to the base network, 1 or 255; the options of this one have it in ``base``.
        output: which of several images that the base network returns is the restored one, a place in a list or a key;
            found by running it by default. The options of this one have it in ``base``.
        base_net: the base network itself, where it cannot be built from options.
        inputs: what a run of it showed, where it has run already.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        candidates: Sequence[str],
        block: int = 1,
        share_taps: bool = False,
        unit: int = 1,
        skip: Sequence[str] = (),
        classifier: Mapping[str, Any] | None = None,
        weights: str = 'shared',
        layers: Mapping[str, Sequence[str]] | None = None,
        fp32: Sequence[str] | None = None,
        value_range: float = 1,
        output: int | str | None = None,
        base_net: nn.Module | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        if weights not in ('shared', 'own'):
            raise UsageError(f'network_g.weights: {weights!r} is not allowed; shared or own')
        classifier = dict(classifier or {'type': 'BandClassifier'})
        base, fp32 = dict(base), tuple(fp32 or ())
        _check_expressions(skip)
        _check_expressions(fp32, 'network_g.fp32')
        try:
            self.ladder = Ladder.parse(candidates, block, share_taps, unit, layers)
        except LadderError as error:
            raise UsageError(error.text, key=f'network_g.{error.place}') from None
        self._once = Once()
        if base_net is None or inputs is None:
            base_net, base, inputs = as_one_image(build_base(base) if base_net is None else base_net, base, output)
            if value_range != 1:
                base_net, base = ValueRange(base_net, value_range), in_range(base, value_range)
                inputs = find_inputs(base_net, base)
        self.options: dict[str, Any] = {
            'type': 'ClassPruning',
            'base': deepcopy(base),
            'candidates': list(candidates),
            'block': block,
            'share_taps': share_taps,
            'unit': unit,
            'skip': list(skip),
            'classifier': deepcopy(classifier),
            'weights': weights,
            'layers': {key: list(value) for key, value in (layers or {}).items()},
        }
        if fp32:  # files without such layers are as they were
            self.options['fp32'] = list(fp32)
        int8 = [candidate.int8 for candidate in self.ladder.sparse]
        if any(int8) and weights != 'own':
            named = ', '.join(candidate.name for candidate in self.ladder.sparse if candidate.int8)
            raise UsageError(f'{weights!r} is not allowed with {named}; own', key='network_g.weights')
        self.base = base_net
        self.inputs = inputs
        self.num_in_ch = inputs.channels
        self.sizes = inputs.sizes
        """Which image sizes the base network takes, and its scale."""
        self.choices = tuple(choose_layers(self.base, self.ladder.patterns, skip, self.ladder.layers, inputs.use, fp32))
        if not any(choice.patterns for choice in self.choices):
            reasons = '; '.join(sorted({choice.reason for choice in self.choices})) or 'it has no such layers'
            raise UsageError(
                f'network_g: no layer of {base.get("type")} can be pruned to {", ".join(candidates)}: {reasons}'
            )
        self.selection = sparsify(self.base, self.choices, weights == 'own', int8)
        self.others = nn.ModuleDict(
            {
                candidate.name: candidate.build(self._dense())
                for candidate in self.ladder
                if not isinstance(candidate, SparseCandidate)
            }
        )
        """Candidates that are no subnetworks of the base network, by name."""
        self.classifier = self._new_classifier()
        self.log_price = nn.Parameter(torch.tensor(FIRST_LOG_PRICE))
        self.budget: float | None = None

    def _new_classifier(self) -> nn.Module:
        options = dict(self.options['classifier'])
        name = options.pop('type')
        if name not in ARCH_REGISTRY:
            raise UsageError(f'network_g.classifier.type: {name!r} is not in ARCH_REGISTRY')
        kind = ARCH_REGISTRY.get(name)
        return kind(num_in_ch=self.num_in_ch, num_classes=len(self.options['candidates']), **options)

    @torch.no_grad()
    def restart_routing(self) -> None:
        """Gives the classifier and the price values to begin with, in place."""
        self.classifier.load_state_dict(self._new_classifier().state_dict())
        self.log_price.fill_(FIRST_LOG_PRICE)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The ladder as it is written, from the sparsest candidate to the densest."""
        return self.ladder.names

    def freeze_dense(self) -> None:
        """Lets nothing train but the sparse candidates' own weights: neither what the dense network computes with, nor
        its 8-bit integers, which are as near to it as calibration brought them."""
        sparse = [place for place, candidate in enumerate(self.ladder.sparse) if candidate.density < 1]
        layers = [layer for _, layer in sparse_layers(self.base)]
        own = {parameter for layer in layers for place in sparse for parameter in layer.own_parameters(place)}
        for parameter in self.base.parameters():
            parameter.requires_grad_(parameter in own)

    @property
    def learners(self) -> tuple[int, ...]:
        """The candidates, by their places in the ladder, that have weights to train: all but the bypass."""
        others = {name for name, net in self.others.items() if not any(True for _ in net.parameters())}
        return tuple(place for place, name in enumerate(self.candidates) if name not in others)

    @property
    def int8(self) -> bool:
        """Whether any candidate multiplies 8-bit integers."""
        return any(candidate.int8 for candidate in self.ladder.sparse)

    # ---------------------------------------------------------- subnetworks

    def forget_subnetworks(self) -> None:
        """Lets the subnetworks be made anew; to be called when weights were changed in place in eval mode."""
        routed = self._once.known('routed')
        for subnetwork in (*routed.subnetworks, routed.dense) if routed else ():
            subnetwork.forget()

    def train(self, mode: bool = True) -> ClassPruning:
        self.forget_subnetworks()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> ClassPruning:
        self.forget_subnetworks()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_subnetworks()  # here, because loading a module that holds this one comes by too
        super()._load_from_state_dict(*args, **kwargs)

    def routed(self) -> RoutedNetwork:
        """This network as inference sees it. It follows the weights."""
        return replace(self._once.get('routed', self._make_routed), router=self.router, budget=self.budget)

    def _make_routed(self) -> RoutedNetwork:
        names = self.candidates
        return RoutedNetwork(
            module=self,
            subnetworks=tuple(
                replace(
                    self._make_subnetwork(name, partial(self._plain, candidate), self.patterns(candidate)),
                    runs_base=isinstance(candidate, SparseCandidate),
                    int8=isinstance(candidate, SparseCandidate) and candidate.int8,
                )
                for name, candidate in zip(names, self.ladder)
            ),
            dense=self._dense(),
            router=self.router,
            count_macs=lambda: self.reference_macs,
        )

    def _dense(self) -> Subnetwork:
        return self._make_subnetwork('dense', partial(freeze, self.base, None), {})

    def _make_subnetwork(self, name: str, make: Any, patterns: dict[str, Pattern]) -> Subnetwork:
        return Subnetwork(name, make, patterns, self.options['base'], self.num_in_ch, self.sizes)

    def _plain(self, candidate: Candidate) -> nn.Module:
        if isinstance(candidate, SparseCandidate):
            return freeze(self.base, self.ladder.sparse.index(candidate))
        return deepcopy(self.others[candidate.name]).eval().requires_grad_(False)

    def subnetwork(self, candidate: Candidate | str | int) -> Subnetwork:
        """One candidate as a plain network."""
        return self.routed().subnetworks[self.ladder.index(candidate)]

    @property
    def dense(self) -> Subnetwork:
        """The unpruned base network, whether or not it is a candidate."""
        return self.routed().dense

    def patterns(self, candidate: Candidate | str | int) -> dict[str, Pattern]:
        """Pattern of each layer that is sparse in a candidate, by the layer's name in the base network."""
        chosen = self.ladder.candidates[self.ladder.index(candidate)]
        if not isinstance(chosen, SparseCandidate):
            return {}
        slot = self.ladder.sparse.index(chosen)
        return {
            choice.name: choice.patterns[slot]
            for choice in self.choices
            if choice.patterns and not choice.patterns[slot].is_dense
        }

    def own_layers(self, candidate: Candidate | str | int) -> dict[str, Pattern]:
        """Pattern of each layer in which a candidate has weights, or a mask, of its own: where it is sparse, and where
        it multiplies 8-bit integers."""
        chosen = self.ladder.candidates[self.ladder.index(candidate)]
        if not isinstance(chosen, SparseCandidate):
            return {}
        slot = self.ladder.sparse.index(chosen)
        own = self.patterns(chosen)
        if chosen.int8:
            own |= {
                choice.name: choice.patterns[slot] for choice in self.choices if choice.patterns and not choice.fp32
            }
        return own

    def restore_with(self, x: Tensor, candidate: Candidate | str | int) -> Tensor:
        """Restores images ``(B, C, H, W)`` with one candidate."""
        return self.subnetwork(candidate).restore(x)

    # ----------------------------------------------------------------- sizes

    @property
    def scale(self) -> int:
        """Output size over input size: 1 for denoising, 4 for ×4 super-resolution."""
        return self.sizes.scale

    def macs(self, height: int, width: int) -> NetworkMacs:
        """MACs of one image of the given size, counted; padding that the base network needs is included."""
        size = (self.num_in_ch, *self.sizes.padded_size(height, width))
        sparse = network_macs(self.dense.net, self.classifier, self.choices, len(self.ladder.sparse), size)
        if not self.others:
            return sparse
        counted = {name: count_by_module(net, size)[''] for name, net in self.others.items()}
        layers = tuple(replace(layer, candidates=self._in_ladder(layer.candidates, {})) for layer in sparse.layers)
        return replace(sparse, candidates=self._in_ladder(sparse.candidates, counted), layers=layers)

    def _in_ladder(self, sparse: Sequence[int], others: Mapping[str, int]) -> tuple[int, ...]:
        """MACs of all candidates, from those of the sparse ones and of the others, which run no layer (0)."""
        own = iter(sparse)
        return tuple(others.get(name, 0) if name in self.others else next(own) for name in self.candidates)

    @property
    def reference_macs(self) -> NetworkMacs:
        """MACs of a small image (``sizes.reference``), counted once; others are in proportion to the pixels."""
        return self._once.get('macs', lambda: self.macs(self.sizes.reference, self.sizes.reference))

    def costs(self) -> Tensor:
        """Each candidate's MACs, the classifier's included, as a fraction of the dense ones: ``(K,)``."""
        return torch.tensor(self.reference_macs.costs, device=self.log_price.device)

    # --------------------------------------------------------------- routing

    @property
    def router(self) -> Router:
        """The classifier and the price, as they are now."""
        runs_base = tuple(isinstance(candidate, SparseCandidate) for candidate in self.ladder)
        return Router(self.classifier, self.log_price, runs_base)

    def predicted_errors(self, x: Tensor) -> Tensor:
        """The error predicted for each candidate, ``(B, K)``, above 0, of images ``(B, C, H, W)`` in [0, 1]."""
        return self.router.predicted_errors(x)

    def error_map(self, x: Tensor) -> Tensor:
        """Predicted errors of the parts of images, ``(B, K, h, w)``; see ``Router.error_map``."""
        return self.router.error_map(x)

    def probabilities(self, errors: Tensor) -> Tensor:
        """Class probabilities ``(B, K)`` at the learnt price, differentiable in the relative errors and the price."""
        return probabilities(errors, self.costs(), self.log_price)

    def route(self, errors: Tensor) -> Tensor:
        """Difficulty classes ``(B,)``: of the best trade at the learnt price, or, where ``budget`` is set, of the best
        total whose average MACs meet it.

        Args:
            errors: relative ones, ``(B, K)``; see ``routing.errors``.
        """
        return self.router.route(errors, self.reference_macs.costs, self.budget)

    def classify(self, x: Tensor) -> Tensor:
        """Difficulty classes ``(B,)`` of images ``(B, C, H, W)`` in [0, 1]."""
        return self.router.classify(x, self.reference_macs.costs, self.budget)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """Restores each image with a candidate of its own.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].
            classes: the candidate of each image, ``(B,)``; the classifier decides where it is left out. In training
                mode also of each pixel, ``(B, H, W)``, see ``run_mixed``.

        Returns:
            Restored images ``(B, C', H · scale, W · scale)`` in the order of ``x``; in training mode with gradients.
        """
        if classes is None:
            classes = self.classify(x)
        if classes.ndim == 3:
            return self.run_mixed(x, classes)
        run = self.run_sparse if self.training else self.restore_with
        used = classes.unique().tolist()
        if len(used) == 1:
            return run(x, used[0])
        members = [(classes == candidate).nonzero()[:, 0] for candidate in used]
        outputs = torch.cat([run(x[index], candidate) for candidate, index in zip(used, members)])
        order = torch.cat(members)
        return outputs[torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))]

    def run_sparse(self, x: Tensor, candidate: Candidate | str | int | None) -> Tensor:
        """Restores images with the weights as they are now, differentiable. Not safe in several threads.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].
            candidate: one of the ladder, or None for the dense base network.
        """
        chosen = None if candidate is None else self.ladder.candidates[self.ladder.index(candidate)]
        if chosen is not None and not isinstance(chosen, SparseCandidate):
            return run_padded(self.others[chosen.name], x, self.sizes)
        self.selection.candidate = None if chosen is None else self.ladder.sparse.index(chosen)
        try:
            return run_padded(self.base, x, self.sizes)
        finally:
            self.selection.candidate = None

    def run_mixed(self, x: Tensor, places: Tensor) -> Tensor:
        """Restores images with several candidates in each, mixed inside the layers; differentiable, and as
        ``run_sparse`` otherwise.

        Args:
            x: images ``(B, C, H, W)`` in [0, 1].
            places: the candidate of each pixel ``(B, H, W)``, subnetworks only; ``NOTHING`` where none runs: what comes
                out there means nothing.
        """
        runs = torch.full((len(self.ladder) + 1,), NOTHING, device=x.device)  # the last one is that of NOTHING
        for slot, candidate in enumerate(self.ladder.sparse):
            runs[self.ladder.index(candidate)] = slot
        height, width = (padded - side for padded, side in zip(self.sizes.padded_size(*x.shape[2:]), x.shape[2:]))
        mapped = functional.pad(runs[places][:, None].float(), (0, width, 0, height), mode='replicate')[:, 0].long()
        self.selection.mixture = Mixture(mapped)
        try:
            return run_padded(self.base, x, self.sizes)
        finally:
            self.selection.mixture = None

    # --------------------------------------------------------------- weights

    @torch.no_grad()
    def rounded_weights(self) -> dict[str, Tensor]:
        """The weights of candidates of 8-bit integers, by their keys, as they are computed with."""
        layers = sparse_layers(self.base)
        return {
            f'base.{name}.{key}': weight for name, layer in layers for key, weight in layer.rounded_weights().items()
        }

    @torch.no_grad()
    def rank_by_magnitude(self) -> None:
        """Renews the nested masks of shared weights from the weights as they are now."""
        for _, layer in sparse_layers(self.base):
            layer.rank_by_magnitude()
        self.forget_subnetworks()

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
                    raise UserError(
                        f'weights do not fit the network: {name} keeps more of them than {broken[0].described}'
                    )
                if not layer.has_usable_grids():
                    raise UserError(f'weights do not fit the network: {name} has no finite ranges for 8-bit integers')
            return
        candidates_only = {k: v for k, v in self.base.state_dict().items() if _is_candidate_key(self.base, k)}
        wanted = self.base.state_dict().keys() - candidates_only.keys()
        load(self.base, {**fitting_params(self.options['base'], params, wanted), **candidates_only})
        for _, layer in sparse_layers(self.base):
            layer.reset_candidates()
            if layer.int8:
                layer.grid(layer.int8[0])  # which raises where there is none
        self.forget_subnetworks()

    def without_candidates(self, params: Mapping[str, Tensor]) -> list[str]:
        """Names of the pruned layers of which a ClassPruning state dict has the dense weight alone, as it was written
        when such layers were not pruned: transposed and grouped ones, and those whose input channels M does not divide.
        """
        dense, others = [], False
        for name, layer in sparse_layers(self.base):
            stem = f'base.{name}.'
            if any(key.startswith((f'{stem}ranks', f'{stem}biases.', f'{stem}weights.')) for key in params):
                others = True
            elif f'{stem}weight' in params and _was_left_dense(layer):
                dense.append(name)
        return dense if others else []

    def start_from(self, params: Mapping[str, Tensor], strict: bool = True) -> None:
        """As ``load_params``, for a training. A classifier of another kind, or of a ladder with a bypass where this one
        has none or the other way round, is left out: it begins anew. So do the candidates of layers that were not
        pruned when the file was written (``without_candidates``)."""
        theirs, ours = _router_shapes(params), _router_shapes(self.state_dict())
        if theirs and theirs != ours:
            _log.warning('the classifier begins anew: the checkpoint has one of another kind, or for other candidates')
            own = {key: value for key, value in self.state_dict().items() if key in ours}
            params = {**{key: value for key, value in params.items() if key not in theirs}, **own}
        older = self.without_candidates(params)
        if older:
            _log.warning('candidates begin from the dense weights where the file has none: %s', ', '.join(older))
            params = {**params, **self._first_candidates(params, older)}
        self.load_params(params, strict)

    def _first_candidates(self, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """What a state dict lacks of the layers named: candidates that begin from its dense weights."""
        found: dict[str, Tensor] = {}
        for name, layer in sparse_layers(self.base):
            if name in names:
                stem = f'base.{name}.'
                load_what_fits(layer, {key: params[stem + key] for key in ('weight', 'bias') if stem + key in params})
                layer.reset_candidates()
                found.update({stem + key: value for key, value in layer.state_dict().items()})
        return found


def _was_left_dense(layer: SparseLayer) -> bool:
    """Whether the first version of this package left such a layer dense."""
    whole = channels_of(layer) % layer.patterns[0].m == 0
    return not whole or groups_of(layer) > 1 or isinstance(layer, nn.ConvTranspose2d)


def _router_shapes(params: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """What of a ClassPruning state dict is not the base network's; empty for a dense one."""
    if 'log_price' not in params:
        return {}
    return {key: value.shape for key, value in params.items() if not key.startswith('base.')}


def _is_candidate_key(base: nn.Module, key: str) -> bool:
    """Whether a state-dict key of the base network belongs to its candidates, not to the dense network."""
    return any(key.startswith(tuple(f'{name}.{part}' for part in CANDIDATE_PARTS)) for name, _ in sparse_layers(base))


def _check_expressions(expressions: Iterable[str], key: str = 'network_g.skip') -> None:
    """Raises UsageError where layers are named by something that is no regular expression."""
    for expression in expressions:
        try:
            re.compile(expression)
        except (re.error, TypeError) as error:
            raise UsageError(f'{expression!r} is no regular expression: {error}', key=key) from None
