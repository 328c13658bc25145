"""Merges of every kind, without transformers, which processes that are killed do not need."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.mixup import Mixup

ROLES = ("instruct", "math", "code")
PAIR = ("instruct", "math")
DARE = mask_of("dare", weight_mask_rate=0.3, use_weight_rescale=True)
RATIOS = Mixup((0.5, 0.2, 0.3))
AVERAGE = parameters_of("average_merging")
TASK_ARITHMETIC = parameters_of("task_arithmetic")
MERGES = {
    "average": AVERAGE,
    "average M3": parameters_of("average_merging", mixup=RATIOS),
    "task arithmetic": parameters_of("task_arithmetic", scaling_coefficient=0.7),
    "TIES": parameters_of("ties_merging"),
    "TIES M3": parameters_of("ties_merging", mixup=RATIOS),
    "DARE average": parameters_of("average_merging", mask=DARE),
    "DARE task arithmetic M3": parameters_of("task_arithmetic", mask=DARE, mixup=RATIOS),
    "DARE TIES": parameters_of("ties_merging", mask=DARE),
    "magnitude mask TIES": parameters_of("ties_merging", mask=mask_of("magnitude", weight_mask_rate=0.3)),
    "random mask of weights": parameters_of(
        "average_merging", mask=mask_of(weight_mask_rate=0.3, weight_format="finetuned_weight")
    ),
}


def request(models: Path, parameters: MergeParameters, roles: Sequence[str] | Mapping[str, str] = ROLES):
    """A merge of `models`/base and its fine-tunes; `roles` may name another folder for a role."""
    folders = roles if isinstance(roles, Mapping) else {role: role for role in roles}
    return MergeRequest(models / "base", {role: models / name for role, name in folders.items()}, parameters)


def merge(
    models: Path, target: Path, parameters: MergeParameters = TASK_ARITHMETIC, roles=PAIR, role="", **work
) -> dict[str, Tensor]:
    """Merge into `target` with a role's tokenizer (default: the last role's), and read the result."""
    role = role or list(roles)[-1]
    merge_folders(request(models, parameters, roles), {role: target}, work=MergeWork(**work))
    return read_weights(target)


def read_weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
