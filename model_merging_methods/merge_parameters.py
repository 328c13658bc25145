"""Everything that defines a merge beside the weights, checked, and the name it gives the results."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from model_merging_methods.merging_methods import MERGING_METHODS
from model_merging_methods.mixup import sums_to_one
from utils.errors import UserError

MASK_MERGING = "mask_merging"
METHOD_NAMES = (*MERGING_METHODS, MASK_MERGING)
WEIGHT_FORMATS = ("delta_weight", "finetuned_weight")
MASK_STRATEGIES = ("random", "magnitude")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True)
class Mask:
    """The mask of `mask_merging`: DARE when it is random over delta weights and rescaled."""

    weight_mask_rate: float = 0.2
    use_weight_rescale: bool = False
    mask_strategy: str = "random"
    weight_format: str = "delta_weight"


@dataclass(frozen=True)
class Mixup:
    """M3: the ratios, and the α they were drawn with (None when they were given)."""

    weights: tuple[float, ...]
    alpha: float | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether another seed gives other ratios: α <= 0 always means the first model alone."""
        return self.alpha is not None and self.alpha > 0


@dataclass(frozen=True)
class MergeParameters:
    """A merge of K models: which method, with what; `mask` None means that nothing is masked.

    `dtype` is that of the saved weights; None: the pretrained model's. Rates are fractions. Parameters whose names
    hold a match of one of `exclude_param_names_regex` stay as the pretrained model has them. `config_from` is the role
    whose config and generation config the merged model has (`configs` says which it has otherwise).
    """

    method: str
    scaling_coefficient: float = 1.0
    param_value_mask_rate: float = 0.5
    mask: Mask | None = None
    mixup: Mixup | None = None
    seed: int = 0
    dtype: str | None = None
    exclude_param_names_regex: tuple[str, ...] = ()
    config_from: str | None = None

    @property
    def merging_method_name(self) -> str:
        return self.method if self.mask is None else MASK_MERGING

    @property
    def reads_pretrained(self) -> bool:
        """Whether θ0 takes part in the result."""
        masks_deltas = self.mask is not None and self.mask.weight_format == "delta_weight"
        return MERGING_METHODS[self.method].reads_pretrained or masks_deltas

    @property
    def uses_seed(self) -> bool:
        """Whether another seed gives another result."""
        drawn_mask = self.mask is not None and self.mask.mask_strategy == "random"
        return drawn_mask or (self.mixup is not None and self.mixup.is_drawn)

    def to_fields(self) -> dict[str, Any]:
        """The parameters as JSON holds them. Records from before `config_from` have no such field."""
        fields = asdict(self)
        if self.config_from is None:
            del fields["config_from"]
        return fields

    def excludes(self, name: str) -> bool:
        """Whether the parameter of this name is left as the pretrained model has it."""
        return any(re.search(pattern, name) for pattern in self.exclude_param_names_regex)

    def check(self, number_of_models: int) -> None:
        """Raise UserError for a value that makes no sense, naming its option."""
        if self.mixup and len(self.mixup.weights) != number_of_models:
            raise UserError(f"--mixup_lambda: {len(self.mixup.weights)} ratios for {number_of_models} models")
        if self.mixup and not sums_to_one(self.mixup.weights):
            raise UserError(f"--mixup: the ratios {self.mixup.weights} sum to {sum(self.mixup.weights):g}, not to 1")
        if self.method not in MERGING_METHODS:
            raise UserError(f"method {self.method}: choose one of {', '.join(MERGING_METHODS)}")
        if not 0 <= self.param_value_mask_rate <= 1:
            raise UserError(f"--param_value_mask_rate {self.param_value_mask_rate}: a rate lies between 0 and 1")
        if self.mask and not 0 <= self.mask.weight_mask_rate <= 1:
            raise UserError(f"--weight_mask_rate {self.mask.weight_mask_rate}: a rate lies between 0 and 1")
        chosen = {"--dtype": (self.dtype, (None, *DTYPE_NAMES))}
        if self.mask:
            chosen["--mask_strategy"] = (self.mask.mask_strategy, MASK_STRATEGIES)
            chosen["--weight_format"] = (self.mask.weight_format, WEIGHT_FORMATS)
        for option, (value, choices) in chosen.items():
            if value not in choices:
                raise UserError(f"{option} {value}: choose one of {', '.join(filter(None, choices))}")
        if not abs(self.scaling_coefficient) < float("inf"):
            raise UserError(f"--scaling_coefficient {self.scaling_coefficient}: give a finite number")
        for pattern in self.exclude_param_names_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"--exclude_param_names_regex {pattern}: is no regular expression ({error})") from None


def parameters_from_fields(fields: Mapping[str, Any]) -> MergeParameters:
    """The parameters whose `to_fields`, to JSON and back, is `fields`.

    Raises KeyError, TypeError or AttributeError where it is not.
    """
    mask, mixup = fields["mask"], fields["mixup"]
    return MergeParameters(
        **{
            **fields,
            "mask": None if mask is None else Mask(**mask),
            "mixup": None if mixup is None else Mixup(tuple(mixup["weights"]), mixup["alpha"]),
            "exclude_param_names_regex": tuple(fields["exclude_param_names_regex"]),
        }
    )


def mask_key(seed: int, model: str, tensor_name: str) -> int:
    """The 64-bit key of one tensor's random mask: a hash of the seed, the model's role (such as `math`)
    and the tensor's name, so that a mask depends on nothing else."""
    text = f"{seed}\0{model}\0{tensor_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def run_name(parameters: MergeParameters, number_of_models: int) -> str:
    """The `<name>` of a merge's folders and files: the paper's while every parameter that it leaves out has
    its default, with the others appended, so that two different merges never share a name."""
    name = parameters.method
    trims = MERGING_METHODS[name].trims
    spelled_out = parameters.mask is not None or not trims
    if name != "average_merging" and (spelled_out or parameters.scaling_coefficient != 1.0):
        name += f"_scaling_coefficient_{parameters.scaling_coefficient}"
    if trims and (spelled_out or parameters.param_value_mask_rate != 0.5):
        name += f"_param_value_mask_rate_{parameters.param_value_mask_rate}"
    if parameters.mask is not None:
        name = f"{MASK_MERGING}/{name}/{_mask_name(parameters.mask, number_of_models)}"
    if parameters.mixup is not None:
        name += f"_mixup_{_mixup_name(parameters.mixup)}"
    if parameters.uses_seed and (parameters.seed != 0 or (parameters.mixup and parameters.mixup.is_drawn)):
        name += f"_seed_{parameters.seed}"
    if parameters.dtype is not None:
        name += f"_dtype_{parameters.dtype}"
    if parameters.exclude_param_names_regex:
        name += f"_exclude_{_short_hash(parameters.exclude_param_names_regex)}"
    if parameters.config_from is not None:
        name += f"_config_from_{parameters.config_from}"
    return name


def _short_hash(patterns: tuple[str, ...]) -> str:
    """Patterns hold characters that file names cannot; the merge record has them in full."""
    return hashlib.blake2b("\0".join(patterns).encode(), digest_size=4).hexdigest()


def _mask_name(mask: Mask, number_of_models: int) -> str:
    rates = "_".join([str(mask.weight_mask_rate)] * number_of_models)
    name = f"mask_{rates}_rescale_{mask.use_weight_rescale}"
    if mask.weight_format != "delta_weight":
        name += f"_weight_format_{mask.weight_format}"
    if mask.mask_strategy != "random":
        name += f"_mask_strategy_{mask.mask_strategy}"
    return name


def _mixup_name(mixup: Mixup) -> str:
    """λ in full when it was given; when drawn, α (with the seed) tells all, and λ stands rounded."""
    shown = mixup.weights[:1] if len(mixup.weights) == 2 else mixup.weights
    if mixup.alpha is None:
        return "lambda_" + "_".join(str(weight) for weight in shown)
    return f"alpha_{mixup.alpha}_lambda_" + "_".join(f"{weight:.4f}" for weight in shown)
