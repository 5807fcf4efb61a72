"""Checks options as a whole and fills in the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from basicsr_classpruning.archs.support import refusal
from basicsr_classpruning.config import registries
from basicsr_classpruning.config.networks import ClassPruningNetwork, PlainNetwork
from basicsr_classpruning.config.places import follow
from basicsr_classpruning.config.problems import Problem, first_problem, under
from basicsr_classpruning.config.registries import DATASET, LOSS, METRIC, MODEL, NETWORK, check_registered
from basicsr_classpruning.config.schema import (
    CLASSPRUNING_MODEL,
    GAN_MODEL,
    GUARDED_MODEL,
    KNOWN_MODELS,
    PLAIN_MODEL,
    REALESRNET_MODEL,
    Options,
    options_class,
)
from basicsr_classpruning.config.wording import shown

_LOSSES = ('pixel_opt', 'perceptual_opt', 'gan_opt', 'budget_opt', 'class_opt', 'distill_opt', 'difficulty_opt')
_SCHEDULERS = {
    'MultiStepLR': 'MultiStepRestartLR',
    'MultiStepRestartLR': 'MultiStepRestartLR',
    'CosineAnnealingRestartLR': 'CosineAnnealingRestartLR',
}
_OPTIMIZERS = ('Adam',)


def validate(opt: Any, source: str, is_train: bool | None = None) -> dict[str, Any]:
    """Checks the options of a whole file and returns them with all defaults filled in, as plain dictionaries.

    ``opt`` is what the file holds; it is not changed. ``source`` names the file in errors. ``is_train`` says what the
    options are for; None takes what the data sets say. Imports the modules of `custom_imports`.
    Raises UsageError, one line, where something is unknown, missing or impossible.
    """
    try:
        return _validated(opt, source, is_train)
    except Problem as problem:
        raise problem.as_error(source) from None


def validate_network(opt: Any, source: str, key: str = 'network_g') -> dict[str, Any]:
    """Checks a network's options alone (see `validate`); ``key`` is their place in the file."""
    try:
        return _validated_network(opt, key)
    except Problem as problem:
        raise problem.as_error(source) from None


def _validated(opt: Any, source: str, is_train: bool | None) -> dict[str, Any]:
    if not isinstance(opt, dict):
        raise Problem('', 'is no options file; a mapping with name, model_type, datasets, network_g, …')
    import_custom(opt, source)
    model_type = _model_type(opt)
    if is_train is None:
        datasets = opt.get('datasets')
        is_train = 'train' in opt or (isinstance(datasets, dict) and 'train' in datasets)
    schema = options_class(model_type, is_train)
    known = model_type in KNOWN_MODELS
    if not known:
        _refuse_basicsr_model(model_type, opt.get('network_g'))
    rest, extras = (opt, []) if known else _without_extras(schema, opt)
    result = _checked(schema, rest).model_dump()
    if not known and result['network_g']['type'] == 'ClassPruning':
        result['network_g'] = _validated_network(result['network_g'], 'network_g')  # trained by the user's own model
    _check_names(result, known)
    for extra in extras:
        extra.put_back(result)
    return result


def _refuse_basicsr_model(model_type: str, network: Any) -> None:
    """BasicSR's own models would train what a ClassPruning network routes to, and never its classifier."""
    wrapped = isinstance(network, dict) and network.get('type') == 'ClassPruning'
    if wrapped and registries.find(MODEL, model_type, 'model_type').__module__.startswith('basicsr.'):
        allowed = f'{CLASSPRUNING_MODEL}, {GAN_MODEL} or {REALESRNET_MODEL}'
        raise Problem('model_type', f'{model_type!r} is not allowed with a ClassPruning network; {allowed}')


def import_custom(opt: dict[str, Any], source: str) -> None:
    """Imports what the options' `custom_imports` name. Raises UsageError."""
    names = opt.get('custom_imports', [])
    try:
        TypeAdapter(list[str]).validate_python(names, strict=True)
    except ValidationError:
        text = f'{shown(names)} is not allowed; a list of module names'
        raise Problem('custom_imports', text).as_error(source) from None
    registries.import_modules(names, source)


def _model_type(opt: dict[str, Any]) -> str:
    if 'model_type' not in opt:
        raise Problem('model_type', f'is missing; {CLASSPRUNING_MODEL}, SRModel or another of BasicSR')
    model_type = opt['model_type']
    if not isinstance(model_type, str):
        raise Problem('model_type', f'{shown(model_type)} is not allowed; text, e.g. {CLASSPRUNING_MODEL}')
    registries.find(MODEL, model_type, 'model_type')
    return model_type


@dataclass(frozen=True)
class _Extra:
    """A key that the schema does not know, and that may be the model's own."""

    place: tuple[str | int, ...]
    value: Any

    def put_back(self, opt: dict[str, Any]) -> None:
        _section(opt, self.place)[self.place[-1]] = self.value


def _where_read(location: tuple[int | str, ...]) -> str:
    """Says of a key that is unknown here where it would be read; '' where it never is."""
    for model_type in (PLAIN_MODEL, GUARDED_MODEL, CLASSPRUNING_MODEL):
        for is_train, phase in ((True, 'training'), (False, 'testing')):
            if follow(location, options_class(model_type, is_train)).known:
                return f'it is read when {phase}' + (f' with model_type {model_type}' * (model_type != PLAIN_MODEL))
    return ''


def _checked(schema: type[Options], opt: dict[str, Any]) -> Options:
    try:
        return schema.model_validate(opt)
    except ValidationError as error:
        raise first_problem(error, schema, _where_read) from None


def _without_extras(schema: type[Options], opt: dict[str, Any]) -> tuple[dict[str, Any], list[_Extra]]:
    """Takes out what the schema does not know, except in data sets, which are not the model's."""
    try:
        schema.model_validate(opt)
        return opt, []
    except ValidationError as error:
        unknown = [item['loc'] for item in error.errors() if item['type'] == 'extra_forbidden']
    places = [follow(location, schema).parts for location in unknown if location[0] != 'datasets']
    rest = _copied(opt)
    return rest, [_Extra(place, _section(rest, place).pop(place[-1])) for place in places]


def _section(opt: dict[str, Any], place: tuple[str | int, ...]) -> Any:
    """The mapping that holds the last key of a place."""
    section: Any = opt
    for part in place[:-1]:
        section = section[part]
    return section


def _copied(value: Any) -> Any:
    """A copy of nested mappings; everything else is shared."""
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_names(opt: dict[str, Any], known: bool) -> None:
    """Looks up everything that options name by `type`. Only ``known`` models keep to BasicSR's optimisers."""
    _check_network(opt['network_g'], 'network_g')
    if known and 'network_d' in opt:
        check_registered(NETWORK, opt['network_d'], 'network_d')
    for phase, dataset in opt['datasets'].items():
        registries.find(DATASET, dataset['type'], f'datasets.{phase}.type')
    for name, metric in ((opt.get('val') or {}).get('metrics') or {}).items():
        check_registered(METRIC, metric, f'val.metrics.{name}')
    train = opt.get('train') or {}
    for name in _LOSSES:
        if train.get(name):
            check_registered(LOSS, train[name], f'train.{name}')
    if train and known:
        for key in ('optim_g', 'optim_d'):
            if key in train:
                _check_optimizer(train[key], f'train.{key}')
        _check_scheduler(train['scheduler'])


def _check_optimizer(options: dict[str, Any], key: str) -> None:
    import torch

    if options['type'] not in _OPTIMIZERS:
        text = f'{shown(options["type"])} is not allowed; {", ".join(_OPTIMIZERS)}'
        raise Problem(f'{key}.type', text)
    _check_called(getattr(torch.optim, options['type']), options, key, frozenset({'params'}))


def _check_scheduler(options: dict[str, Any]) -> None:
    from basicsr.models import lr_scheduler

    if options['type'] not in _SCHEDULERS:
        text = f'{shown(options["type"])} is not allowed; {", ".join(_SCHEDULERS)}'
        raise Problem('train.scheduler.type', text)
    entry = getattr(lr_scheduler, _SCHEDULERS[options['type']])
    _check_called(entry, options, 'train.scheduler', frozenset({'optimizer', 'last_epoch'}))


def _check_called(entry: Any, options: dict[str, Any], key: str, supplied: frozenset[str]) -> None:
    given = {name: value for name, value in options.items() if name != 'type'}
    registries.check_arguments(entry, given, key, supplied)


def _validated_network(opt: Any, key: str) -> dict[str, Any]:
    if not isinstance(opt, dict):
        raise Problem(key, f"{shown(opt)} is not allowed; a mapping with a network's type and its arguments")
    schema = ClassPruningNetwork if opt.get('type') == 'ClassPruning' else PlainNetwork
    try:
        result = schema.model_validate(opt).model_dump()
    except ValidationError as error:
        problem = first_problem(error, schema, _where_read)
        raise Problem(under(key, problem.key), problem.text) from None
    if schema is PlainNetwork and (reason := refusal(result['type'])):
        raise Problem(under(key, 'type'), f'{result["type"]!r} is not allowed: {reason}')
    _check_network(result, key)
    return result


def _check_network(network: dict[str, Any], key: str) -> None:
    if network['type'] != 'ClassPruning':
        check_registered(NETWORK, network, key)
        return
    check_registered(NETWORK, network['base'], under(key, 'base'))
    classifier = network['classifier']
    classifier_key = under(key, 'classifier')
    entry = registries.find(NETWORK, classifier['type'], under(classifier_key, 'type'))
    given = {name: value for name, value in classifier.items() if name != 'type'}
    registries.check_arguments(entry, given, classifier_key, frozenset(), may_lack=True)
