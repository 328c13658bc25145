"""The definition of a merge: models, method and numbers, their checks, and the name of the results."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model_merging_methods.merging_methods import MERGING_METHODS
from utils.content_hashes import FileStates, file_states
from utils.custom_code import code_files
from utils.errors import UserError
from utils.tokenizer_files import tokenizer_files
from utils.weight_files import adapter_files, index_file, is_adapter_folder, weight_files

PRETRAINED = "pretrained"
MASK_MERGING = "mask_merging"
METHOD_NAMES = (*MERGING_METHODS, MASK_MERGING)
WEIGHT_FORMATS = ("delta_weight", "finetuned_weight")
MASK_STRATEGIES = ("random", "magnitude")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True)
class Mask:
    """The mask of `mask_merging`: DARE if it is random, over delta weights, and rescaled."""

    weight_mask_rate: float = 0.2
    use_weight_rescale: bool = False
    mask_strategy: str = "random"
    weight_format: str = "delta_weight"


@dataclass(frozen=True)
class Mixup:
    """M3's ratios, and the α that they were drawn with (None if they were given)."""

    ratios: tuple[float, ...] = field(metadata={"alias": "weights"})  # its name in records
    alpha: float | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether the ratios depend on the seed. α <= 0 always means the first model alone."""
        return self.alpha is not None and self.alpha > 0


@dataclass(frozen=True)
class MergeParameters:
    """The method of a merge, and its numbers. Without a `mask`, nothing is masked.

    The weights are saved in `dtype` (None: the pretrained model's). Rates are fractions. Parameters whose names match
    one of `exclude_param_names_regex` stay as in the pretrained model. The merged model gets the config and generation
    config of the role `config_from` (`configs` describes the default).
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
        """Whether the result depends on θ0."""
        masks_deltas = self.mask is not None and self.mask.weight_format == "delta_weight"
        return MERGING_METHODS[self.method].reads_pretrained or masks_deltas

    @property
    def uses_seed(self) -> bool:
        """Whether the result depends on the seed."""
        drawn_mask = self.mask is not None and self.mask.mask_strategy == "random"
        return drawn_mask or (self.mixup is not None and self.mixup.is_drawn)

    def to_fields(self) -> dict[str, Any]:
        """The parameters as records store them. Records older than `config_from` lack that field."""
        fields = asdict(self)
        if self.mixup is not None:
            fields["mixup"] = {"weights": self.mixup.ratios, "alpha": self.mixup.alpha}
        if self.config_from is None:
            del fields["config_from"]
        return fields

    def excludes(self, name: str) -> bool:
        """Whether the parameter of this name stays as in the pretrained model."""
        return any(re.search(pattern, name) for pattern in self.exclude_param_names_regex)

    def check(self, number_of_models: int) -> None:
        """Raise UserError, naming the option, for a value that makes no sense."""
        if self.mixup and len(self.mixup.ratios) != number_of_models:
            raise UserError(f"--mixup_lambda: {len(self.mixup.ratios)} ratios for {number_of_models} models")
        if self.mixup and not _sums_to_one(self.mixup.ratios):
            raise UserError(f"--mixup: the ratios {self.mixup.ratios} sum to {sum(self.mixup.ratios):g}, not to 1")
        if self.method not in MERGING_METHODS:
            raise UserError(f"method {self.method}: choose one of {', '.join(MERGING_METHODS)}")
        rates = {"param_value_mask_rate": self.param_value_mask_rate}
        if self.mask:
            rates["weight_mask_rate"] = self.mask.weight_mask_rate
        for option, rate in rates.items():
            if not 0 <= rate <= 1:
                raise UserError(f"--{option} {rate}: give a rate between 0 and 1")
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
                why = f"is not a regular expression ({error})"
                raise UserError(f"--exclude_param_names_regex {pattern}: {why}") from None


def parameters_from_fields(fields: Mapping[str, Any]) -> MergeParameters:
    """The parameters from a record's fields. Raises KeyError, TypeError or AttributeError for other fields."""
    mask, mixup = fields["mask"], fields["mixup"]
    return MergeParameters(
        **{
            **fields,
            "mask": None if mask is None else Mask(**mask),
            "mixup": None if mixup is None else Mixup(tuple(mixup["weights"]), mixup["alpha"]),
            "exclude_param_names_regex": tuple(fields["exclude_param_names_regex"]),
        }
    )


@dataclass(frozen=True)
class MergeRequest:
    """The models of a merge, and its parameters. `finetuned` maps each role (such as `math`) to a folder, in model
    order."""

    pretrained: Path
    finetuned: Mapping[str, Path]
    parameters: MergeParameters

    @property
    def inputs(self) -> dict[str, Path]:
        """All folders by role, the pretrained model's first."""
        return {PRETRAINED: self.pretrained, **self.finetuned}

    def input_states(self) -> FileStates:
        """The states of all files that the merge depends on, to detect later whether one has changed."""
        return file_states(file for folder in self.inputs.values() for file in list_input_files(folder))


def list_input_files(folder: Path) -> list[Path]:
    """The files of an input folder that a merge depends on. Raises UserError if the model is incomplete."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file, not a' if folder.exists() else 'no such'} model folder")
    configs = [folder / name for name in ("config.json", "generation_config.json")]
    files = [path for path in configs if path.exists()] + tokenizer_files(folder) + code_files(folder)
    if is_adapter_folder(folder):
        return [*files, *adapter_files(folder)]
    index = index_file(folder)
    return [*files, *([] if index is None else [index]), *weight_files(folder)]


def draw_ratios(alpha: float, number_of_models: int, seed: int) -> tuple[float, ...]:
    """Draw M3's ratios from Dirichlet(α, …, α): for two models (λ, 1 − λ) with λ ~ Beta(α, α).

    α <= 0 means λ = 1: the first model alone, as in the paper's code. The draw depends on `seed` alone.
    """
    if not math.isfinite(alpha):
        raise UserError(f"--alpha {alpha}: give a finite number (0.5 in the paper)")
    if alpha <= 0:
        return (1.0, *[0.0] * (number_of_models - 1))
    drawn = np.random.default_rng(seed).dirichlet([alpha] * number_of_models)
    if not _sums_to_one(drawn):  # the gamma variables behind the draw add up to infinity
        raise UserError(f"--alpha {alpha}: is too large to draw from; all ratios are equal from 1e300 on, so give that")
    if number_of_models == 2:
        return two_model_ratios(float(drawn[0]))
    return tuple(float(ratio) for ratio in drawn)


def given_ratios(mixup_lambda: Sequence[float], number_of_models: int) -> tuple[float, ...]:
    """The ratios of `--mixup_lambda`: λ for two models, or one ratio for each of K models.

    Raises UserError for a ratio outside [0, 1], another number of ratios, or a sum other than 1.
    """
    option = "--mixup_lambda " + " ".join(map(str, mixup_lambda))
    if not all(0 <= ratio <= 1 for ratio in mixup_lambda):
        raise UserError(f"{option}: give ratios between 0 and 1")
    if len(mixup_lambda) == 1 and number_of_models == 2:
        return two_model_ratios(mixup_lambda[0])
    if len(mixup_lambda) != number_of_models:
        wanted = "one ratio, or two" if number_of_models == 2 else f"{number_of_models} ratios"
        raise UserError(f"{option}: {number_of_models} models are merged, give {wanted} that sum to 1")
    if not _sums_to_one(mixup_lambda):
        raise UserError(f"{option}: the ratios sum to {sum(mixup_lambda):g}, make them sum to 1")
    return two_model_ratios(mixup_lambda[0]) if number_of_models == 2 else tuple(mixup_lambda)


def two_model_ratios(mixup_lambda: float) -> tuple[float, float]:
    """(λ, 1 − λ), the second computed in double precision."""
    return (mixup_lambda, 1 - mixup_lambda)


def _sums_to_one(ratios: Sequence[float]) -> bool:
    """Whether ratios sum to 1, within the rounding of six digits; never if one is NaN."""
    return abs(sum(ratios) - 1) <= 1e-6


def mask_key(seed: int, model: str, tensor_name: str) -> int:
    """The 64-bit key of one tensor's random mask: a hash of the seed, the model's role (such as `math`) and the
    tensor's name. The mask depends on nothing else."""
    text = f"{seed}\0{model}\0{tensor_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def run_name(parameters: MergeParameters, number_of_models: int) -> str:
    """The `<name>` of a merge's folders and files: the paper's name, followed by every other parameter
    that differs from its default. Two different merges never share a name."""
    name = parameters.method
    has_trimming = MERGING_METHODS[name].has_trimming
    spelled_out = parameters.mask is not None or not has_trimming
    if name != "average_merging" and (spelled_out or parameters.scaling_coefficient != 1.0):
        name += f"_scaling_coefficient_{parameters.scaling_coefficient}"
    if has_trimming and (spelled_out or parameters.param_value_mask_rate != 0.5):
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
        # Patterns hold characters that file names cannot; the merge record has them in full.
        patterns = "\0".join(parameters.exclude_param_names_regex).encode()
        name += f"_exclude_{hashlib.blake2b(patterns, digest_size=4).hexdigest()}"
    if parameters.config_from is not None:
        name += f"_config_from_{parameters.config_from}"
    return name


def _mask_name(mask: Mask, number_of_models: int) -> str:
    rates = "_".join([str(mask.weight_mask_rate)] * number_of_models)
    name = f"mask_{rates}_rescale_{mask.use_weight_rescale}"
    if mask.weight_format != "delta_weight":
        name += f"_weight_format_{mask.weight_format}"
    if mask.mask_strategy != "random":
        name += f"_mask_strategy_{mask.mask_strategy}"
    return name


def _mixup_name(mixup: Mixup) -> str:
    """A given λ in full. A drawn λ is rounded, because α and the seed define it."""
    shown = mixup.ratios[:1] if len(mixup.ratios) == 2 else mixup.ratios
    if mixup.alpha is None:
        return "lambda_" + "_".join(map(str, shown))
    return f"alpha_{mixup.alpha}_lambda_" + "_".join(f"{ratio:.4f}" for ratio in shown)


def tasks_name(roles: Mapping[str, Any] | Sequence[str]) -> str:
    """The `<tasks>` of outputs: the merged models' roles in model order, such as `instruct_math`."""
    return "_".join(roles)
