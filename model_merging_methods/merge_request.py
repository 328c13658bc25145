"""The definition of a merge: models, method and numbers, their checks, and the name of the results."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_merging_methods.checkpoints.tensor_names import layer_of
from model_merging_methods.merge_parameters import MASK_MERGING, Mask, MergeParameters, per_model
from model_merging_methods.method import Value
from model_merging_methods.mixup import Mixup
from utils.content_hashes import FileStates, file_states
from utils.custom_code import code_files
from utils.errors import UserError
from utils.hub_headers import lacks_headers
from utils.tokenizer_files import tokenizer_files
from utils.weight_files import adapter_files, index_file, is_adapter_folder, weight_files

if TYPE_CHECKING:
    from model_merging_methods.recipes.recipe import Recipe
    from model_merging_methods.recipes.references import ModelReference

PRETRAINED = "pretrained"
_LONGEST_NAME, _KEPT_OF_LONG_NAMES = 200, 120  # of one folder
RECIPE = "recipe"  # in outputs' places, instead of the models' roles


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and the roles of its models. `adapters` maps the role of an adapter to its base's. `made` maps the role
    of a model that an earlier document of the same file makes to that document's merge."""

    recipe: "Recipe"
    roles: Mapping["ModelReference", str]
    adapters: Mapping[str, str]
    made: Mapping[str, "MergeRequest"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The `<name>` of the results: `merge_method`, and a hash of the recipe and its seed."""
        text = json.dumps([self.fields, self.recipe.seed], sort_keys=True)
        return f"{self.recipe.method.name}_{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    def leaves_out(self, role: str, name: str) -> bool:
        """Whether no slice has a tensor of this model, because of its layer."""
        layer = layer_of(name)
        sources = [source for part in self.recipe.slices for source in part.sources if self.roles[source.model] == role]
        return layer is not None and all(source.layers and layer not in range(*source.layers) for source in sources)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The recipe as records store it: its text's values, with roles for models; and in the same form the recipes of
        earlier documents."""
        from model_merging_methods.recipes.recipe import with_models  # imports YAML

        names = {str(model): role for model, role in self.roles.items()}
        fields = {"document": with_models(self.recipe.document, names), "adapters": dict(self.adapters)}
        made = {role: request.recipe.fields for role, request in self.made.items()}
        return {**fields, "made": made} if made else fields


@dataclass(frozen=True)
class MergeRequest:
    """The models of a merge, and its parameters. `finetuned` maps each role (such as `math`) to a folder, in model
    order. With a `recipe`, these are its models, and `parameters` those of its first rules (None without headers)."""

    pretrained: Path
    finetuned: Mapping[str, Path]
    parameters: MergeParameters | None
    recipe: NamedRecipe | None = None

    @property
    def roles(self) -> list[str]:
        """The roles whose folders are made: the fine-tunes', for their tokenizers, or one for a recipe."""
        return [RECIPE] if self.recipe else list(self.finetuned)

    @property
    def run_name(self) -> str:
        """The `<name>` of outputs."""
        return self.recipe.name if self.recipe else run_name(self.parameters, len(self.finetuned))

    def check(self) -> None:
        """Raise UserError for parameters that make no sense. Those of recipes are checked by tensor."""
        if self.recipe is None:
            self.parameters.check(len(self.finetuned))

    @property
    def inputs(self) -> dict[str, Path]:
        """All models by role, the pretrained one first: their folders, or the names of documents that make them."""
        return {PRETRAINED: self.pretrained, **self.finetuned}

    @property
    def made(self) -> Mapping[str, "MergeRequest"]:
        """The merges of earlier documents of a recipe that make some of the models, by role."""
        return self.recipe.made if self.recipe else {}

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the models that are not made, by role."""
        return {role: folder for role, folder in self.inputs.items() if role not in self.made}

    def all_folders(self, within: str = "") -> Iterator[tuple[str, Path]]:
        """The folders of all models, also of those that make others: such a role is `<role that is made>.<role>`."""
        for role, folder in self.inputs.items():
            if role in self.made:
                yield from self.made[role].all_folders(f"{within}{role}.")
            else:
                yield f"{within}{role}", folder

    @property
    def has_headers(self) -> bool:
        """Whether at least the headers of all models are on this machine."""
        return not any(lacks_headers(folder) for _, folder in self.all_folders())

    def input_states(self) -> FileStates:
        """The states of all files that the merge depends on, to detect later whether one has changed."""
        return file_states(file for _, folder in self.all_folders() for file in list_input_files(folder))


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


def mask_key(seed: int, model: str, tensor_name: str) -> int:
    """The 64-bit key of one tensor's random mask: a hash of the seed, the model's role (such as `math`) and the
    tensor's name. The mask depends on nothing else."""
    text = f"{seed}\0{model}\0{tensor_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def run_name(parameters: MergeParameters, number_of_models: int) -> str:
    """The `<name>` of a merge's folders and files: the paper's name, followed by every other parameter
    that differs from its default. Two different merges never share a name."""
    name = parameters.method
    spelled_out = parameters.mask is not None or name == "task_arithmetic"
    for option, value in parameters.options:
        # The paper's names have these of task arithmetic and of every masked merge, whatever their values.
        is_in_papers_name = spelled_out and option in ("scaling_coefficient", "param_value_mask_rate")
        if is_in_papers_name or value != parameters.declared.options[option].default:
            name += f"_{option}_{_written(value)}"
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
    return "/".join(map(_short_enough, name.split("/")))


def _mask_name(mask: Mask, number_of_models: int) -> str:
    values = mask.values
    rates = values.pop("weight_mask_rate", None)
    name = "mask"
    if rates is not None:
        name += "_" + "_".join(map(str, per_model(rates, number_of_models)))
    if "use_weight_rescale" in values:
        name += f"_rescale_{values.pop('use_weight_rescale')}"
    if mask.weight_format != "delta_weight":
        name += f"_weight_format_{mask.weight_format}"
    if mask.strategy != "random":
        name += f"_mask_strategy_{mask.strategy}"
    for option, value in values.items():
        if value != mask.declared.options[option].default:
            name += f"_{option}_{_written(value)}"
    return name


def _written(value: Value) -> str:
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _mixup_name(mixup: Mixup) -> str:
    """A given λ in full. A drawn λ is rounded, because α and the seed define it."""
    shown = mixup.ratios[:1] if len(mixup.ratios) == 2 else mixup.ratios
    if mixup.by_layer:
        return "lambda_by_layer_" + "_".join(map(str, mixup.by_layer))
    if mixup.alpha is None:
        return "lambda_" + "_".join(map(str, shown))
    return f"alpha_{mixup.alpha}_lambda_" + "_".join(f"{ratio:.4f}" for ratio in shown)


def tasks_name(roles: Mapping[str, Any] | Sequence[str]) -> str:
    """The `<tasks>` of outputs: the merged models' roles in model order, such as `instruct_math`."""
    return _short_enough("_".join(roles))


def _short_enough(name: str) -> str:
    """A name that file systems accept, endings of files included: the start of a long one, and its hash."""
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[:_KEPT_OF_LONG_NAMES]}_{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
