"""The parameters of a merge: a method, a mask and their options, M3's ratios, and what is saved."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_merging_methods.masks import MASKS
from model_merging_methods.method import MaskMethod, Method, Option, PerModel, Value
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup, sum_to_one
from utils.errors import UserError

MASK_MERGING = "mask_merging"
METHOD_NAMES = (*METHODS, MASK_MERGING)
WEIGHT_FORMATS = ("delta_weight", "finetuned_weight")
PAPERS_WORDS = {"dare": "random"}  # for masks
MASK_STRATEGIES = tuple(sorted(PAPERS_WORDS.get(name, name) for name in MASKS))
DTYPE_NAMES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "auto")

# Records held these of every method before each method had its own options; the fingerprints of merges still do.
_OPTIONS_IN_EVERY_FINGERPRINT = {"scaling_coefficient": 1.0, "param_value_mask_rate": 0.5}
_OPTIONS_OF_THE_FIRST_MASKS = ("weight_mask_rate", "use_weight_rescale")

Options = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Mask:
    """A mask of `MASKS` with its options, and the values that it is applied to: delta weights or weights."""

    name: str = "dare"
    options: Options = ()
    weight_format: str = "delta_weight"

    @property
    def declared(self) -> MaskMethod:
        return MASKS[self.name]

    @property
    def values(self) -> dict[str, Value]:
        """The options by name."""
        return dict(self.options)

    def options_of_model(self, model: int) -> dict[str, Value]:
        """The options by name, for one of the models."""
        return {name: value[model] if isinstance(value, tuple) else value for name, value in self.options}

    @property
    def masks_deltas(self) -> bool:
        return self.weight_format == "delta_weight"

    @property
    def strategy(self) -> str:
        """The name in the paper's words."""
        return PAPERS_WORDS.get(self.name, self.name)

    def to_fields(self) -> dict[str, Any]:
        return {**self.values, "mask_strategy": self.strategy, "weight_format": self.weight_format}


@dataclass(frozen=True)
class MergeParameters:
    """The method of a merge with all its options, and the rest. Without a `mask`, nothing is masked.

    The weights are saved in `dtype` (None: the pretrained model's). Parameters whose names match one of
    `exclude_param_names_regex` stay as in the pretrained model. The merged model gets the config and generation config
    of the role `config_from` (`configs` describes the default).
    """

    method: str
    options: Options = ()
    mask: Mask | None = None
    mixup: Mixup | None = None
    seed: int = 0
    dtype: str | None = None
    exclude_param_names_regex: tuple[str, ...] = ()
    config_from: str | None = None

    @property
    def declared(self) -> Method:
        return METHODS[self.method]

    @property
    def values(self) -> dict[str, Value]:
        """The method's options by name."""
        return dict(self.options)

    @property
    def all_values(self) -> dict[str, Value]:
        """The options of the method and the mask by name."""
        return {**self.values, **(self.mask.values if self.mask else {})}

    def formula_options(self, number_of_models: int) -> dict[str, Value]:
        """The options of the method's formula: K numbers for one per model. M3's ratios replace `weight`."""
        declared = self.declared.options
        options = {
            name: per_model(value, number_of_models) if declared[name].is_per_model else value
            for name, value in self.options
        }
        return {**options, "weight": self.mixup.ratios} if self.mixup and "weight" in options else options

    def with_options(self, **changed: Value) -> "MergeParameters":
        """The same with other values of some options of the method or the mask."""
        mask = self.mask
        if mask is not None:
            own = {name: value for name, value in changed.items() if name in mask.values}
            mask = replace(mask, options=tuple({**mask.values, **own}.items()))
            changed = {name: value for name, value in changed.items() if name not in own}
        unknown = changed.keys() - self.values.keys()
        if unknown:
            raise KeyError(f"{self.method} has no option {sorted(unknown)[0]}")
        return replace(self, options=tuple({**self.values, **changed}.items()), mask=mask)

    @property
    def merging_method_name(self) -> str:
        return self.method if self.mask is None else MASK_MERGING

    @property
    def reads_base(self) -> bool:
        """Whether the result depends on θ0."""
        return self.declared.reads_base_with(self.values) or (self.mask is not None and self.mask.masks_deltas)

    @property
    def uses_seed(self) -> bool:
        """Whether the result depends on the seed."""
        drawn_mask = self.mask is not None and self.mask.declared.is_random
        return drawn_mask or (self.mixup is not None and self.mixup.is_drawn)

    def to_fields(self) -> dict[str, Any]:
        """The parameters as records store them."""
        return {"method": self.method, "options": self.values, **self._other_fields()}

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that fingerprints are computed from. An option at its default is left out, so that a method's new
        option does not change the fingerprints of its old merges."""
        fields = {**_OPTIONS_IN_EVERY_FINGERPRINT, **_without_defaults(self.values, self.declared.options)}
        fields |= {"method": self.method, **self._other_fields()}
        if self.mask is not None:
            own = _without_defaults(self.mask.values, self.mask.declared.options)
            always = {
                name: self.mask.values[name]
                for name in ("weight_mask_rate", "use_weight_rescale")
                if name in self.mask.values
            }
            fields["mask"] = {
                **always,
                **own,
                "mask_strategy": self.mask.strategy,
                "weight_format": self.mask.weight_format,
            }
        return fields

    def _other_fields(self) -> dict[str, Any]:
        fields = {
            "mask": None if self.mask is None else self.mask.to_fields(),
            "mixup": None if self.mixup is None else _mixup_fields(self.mixup),
            "seed": self.seed,
            "dtype": self.dtype,
            "exclude_param_names_regex": self.exclude_param_names_regex,
        }
        return fields if self.config_from is None else {**fields, "config_from": self.config_from}

    def excludes(self, name: str) -> bool:
        """Whether the parameter of this name stays as in the pretrained model."""
        return any(re.search(pattern, name) for pattern in self.exclude_param_names_regex)

    def check(self, number_of_models: int) -> None:
        """Raise UserError, naming the option, for a value that makes no sense."""
        _check_number_of_models(self.declared, number_of_models)
        if self.mixup and not self.declared.takes_ratios:
            raise UserError(
                f"--mixup: {self.method} takes no ratios of M3; remove --mixup, --mixup_lambda or --ratio_by_layer"
            )
        if self.mixup and len(self.mixup.ratios) != number_of_models:
            raise UserError(f"--mixup_lambda: {len(self.mixup.ratios)} ratios for {number_of_models} models")
        if self.mixup and not sum_to_one(self.mixup.ratios):
            raise UserError(f"--mixup: the ratios {self.mixup.ratios} sum to {sum(self.mixup.ratios):g}, not to 1")
        if self.mask and not self.declared.takes_mask:
            raise UserError(f"--mask_apply_method {self.method}: takes no mask; choose another method")
        _check_options(self.values, self.declared.options, number_of_models)
        self.declared.check(self.formula_options(number_of_models))
        chosen = {"--dtype": (self.dtype, (None, *DTYPE_NAMES, "float64"))}  # float64: of recipes
        if self.mask:
            _check_options(self.mask.values, self.mask.declared.options, number_of_models)
            for model in range(number_of_models):
                self.mask.declared.check(self.mask.options_of_model(model))
            chosen["--weight_format"] = (self.mask.weight_format, WEIGHT_FORMATS)
        for option, (value, choices) in chosen.items():
            if value not in choices:
                raise UserError(f"{option} {value}: choose one of {', '.join(filter(None, choices))}")
        for pattern in self.exclude_param_names_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                why = f"is not a regular expression ({error})"
                raise UserError(f"--exclude_param_names_regex {pattern}: {why}") from None


def parameters_of(
    method: str,
    *,
    mask: Mask | None = None,
    mixup: Mixup | None = None,
    seed: int = 0,
    dtype: str | None = None,
    exclude_param_names_regex: Sequence[str] = (),
    config_from: str | None = None,
    **options: Value,
) -> MergeParameters:
    """The parameters of a method with these options; the others have their defaults.

    Raises UserError for an unknown method or option, and for a missing required one.
    """
    if method not in METHODS:
        raise UserError(f"method {method}: choose one of {', '.join(METHODS)}")
    whole = complete_options(method, METHODS[method].options, options)
    return MergeParameters(method, whole, mask, mixup, seed, dtype, tuple(exclude_param_names_regex), config_from)


def mask_name(strategy: str) -> str:
    """Our name of a mask that may have the paper's."""
    return next((name for name, word in PAPERS_WORDS.items() if word == strategy), strategy)


def mask_of(name: str = "dare", *, weight_format: str = "delta_weight", **options: Value) -> Mask:
    """The mask of a name, which may be the paper's, with these options; the others have their defaults."""
    name = mask_name(name)
    if name not in MASKS:
        raise UserError(f"--mask_strategy {name}: choose one of {', '.join(MASK_STRATEGIES)}")
    return Mask(name, complete_options(name, MASKS[name].options, options), weight_format)


def complete_options(owner: str, declared: Mapping[str, Option], given: Mapping[str, Value]) -> Options:
    """All options of a method or mask, in the order of its declaration."""
    unknown = given.keys() - declared.keys()
    if unknown:
        name = sorted(unknown)[0]
        raise UserError(f"--{name} {given[name]}: {owner} has no such option; remove it")
    values = {}
    for name, option in declared.items():
        value = given.get(name, option.default)
        if value is None:
            raise UserError(f"{owner}: give --{name}, {option.about.text}")
        values[name] = _typed(value, option)
    return tuple(values.items())


def parameters_from_fields(fields: Mapping[str, Any]) -> MergeParameters:
    """The parameters from a record's fields, of any version. Raises KeyError, TypeError, ValueError, AttributeError or
    UserError for other fields."""
    fields = dict(fields)
    mask, mixup, method = fields.pop("mask"), fields.pop("mixup"), fields.pop("method")
    options = fields.pop("options", None)
    if options is None:  # a record from before methods had their own options
        options = {name: fields.pop(name) for name in _OPTIONS_IN_EVERY_FINGERPRINT}
        options = {name: value for name, value in options.items() if name in METHODS[method].options}
    if mask is not None:
        mask = mask_of(
            mask["mask_strategy"], **{name: value for name, value in mask.items() if name != "mask_strategy"}
        )
    return parameters_of(
        method,
        mask=mask,
        mixup=mixup and Mixup(tuple(mixup["weights"]), mixup["alpha"], tuple(mixup.get("by_layer") or ())),
        **{"exclude_param_names_regex": (), **fields},
        **options,
    )


def per_model(value: Value, number_of_models: int) -> PerModel:
    """One number for each model: a single number counts for all."""
    return value if isinstance(value, tuple) else (float(value),) * number_of_models


def _typed(value: Any, option: Option) -> Value:
    if option.is_per_model:
        return tuple(float(one) for one in value) if isinstance(value, list | tuple) else float(value)
    if option.type is not str and isinstance(value, str):
        raise TypeError(f"{option.name}: {value!r} is not a number")
    return option.type(value)


def _mixup_fields(mixup: Mixup) -> dict[str, Any]:
    fields = {"weights": mixup.ratios, "alpha": mixup.alpha}
    return {**fields, "by_layer": mixup.by_layer} if mixup.by_layer else fields


def _without_defaults(values: Mapping[str, Value], declared: Mapping[str, Option]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value != declared[name].default}


def _check_options(values: Mapping[str, Value], declared: Mapping[str, Option], number_of_models: int) -> None:
    for name, value in values.items():
        if isinstance(value, tuple) and len(value) != number_of_models:
            raise UserError(f"--{name}: {len(value)} numbers for {number_of_models} models")
        declared[name].check(value)


def _check_number_of_models(method: Method, number: int) -> None:
    least, most = method.models
    if least <= number <= (most or number):
        return
    wanted = f"exactly {least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    noun = "fine-tune" if most == 1 else "fine-tunes"
    raise UserError(f"{method.name}: merges {wanted} {noun}, not {number}; choose other models or another method")
