"""Check a merge's inputs before the first weight is read, in the same way for merges, searches and diagnoses.

Configs, headers, indexes and tokenizers of all models are read and compared. The result is a list of findings, each an
error or a warning with a remedy, and the models if they can be merged. Two kinds of values are read as well, because
names are not enough: matrices stored under two names, and integers.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from model_merging_methods.before_download import request_of_headers, with_names
from model_merging_methods.checkpoints.aligned_models import BASE, AlignedModels, align_models
from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.configs import (
    check_configs,
    check_custom_code,
    check_generation_configs,
    check_vocabulary_sizes,
)
from model_merging_methods.checkpoints.lora_adapter import AdaptedFolder
from model_merging_methods.checkpoints.model_files import write_model_files
from model_merging_methods.checkpoints.tokenizer_reading import check_tokenizers
from model_merging_methods.comparison import check_related
from model_merging_methods.engine import Merge
from model_merging_methods.kernels.stored_dtypes import LONG_NAMES, is_floating
from model_merging_methods.merge_record import check_sizes_against_record
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.model_card import model_name
from model_merging_methods.opened_models import OpenedModels, Part
from utils.errors import UserError
from utils.findings import Findings
from utils.weight_files import ignored_pickled_files, is_adapter_folder

Folder = CheckpointFolder | AdaptedFolder


def check_inputs(
    request: MergeRequest, stack: ExitStack, allow_unrelated: bool = False, roles: Iterable[str] | None = None
) -> tuple[OpenedModels | None, Findings]:
    """The models of a merge, open until `stack` closes them (None after an error), and the findings. `allow_unrelated`
    turns some errors into warnings. `roles` are those whose tokenizers will be written (default: all)."""
    findings = Findings()
    folders = _open_folders(request, stack, findings)
    by_role = {role: folder for role, folder in zip(request.inputs, folders, strict=True) if folder is not None}
    can_be_compared = folders[BASE] is not None and len(by_role) > 1
    if can_be_compared:
        check_configs(by_role, request.parameters.config_from, allow_unrelated, findings)
    check_generation_configs({role: folder.folder for role, folder in by_role.items()}, findings)
    check_custom_code(by_role, findings)
    models = None
    if can_be_compared:
        models = align_models(list(by_role.values()), request.parameters.excludes, findings)
    if models is None or len(by_role) < len(folders):
        return None, findings
    write_files = partial(write_model_files, request, models)
    opened = OpenedModels(by_role, [Part(models, list(request.finetuned))], write_files)
    with findings.collect():
        merge = opened.parts[0].merge(request.parameters)
        _check_exclusions(merge)
        _check_values(merge, findings)
    rows = {role: models.vocabulary_rows(number) for number, role in enumerate(request.inputs)}
    check_vocabulary_sizes(by_role, rows, findings)
    check_tokenizers(request.inputs, rows, findings)
    for role in request.finetuned if roles is None else roles:
        with findings.collect(), tempfile.TemporaryDirectory() as folder:
            write_files(role, Path(folder))
    return (None if findings.errors else opened), findings


def check_merge(request: MergeRequest, allow_unrelated: bool, made_from: Path | None = None) -> Findings:
    """Every error and warning of a merge about its inputs. If `made_from` is given, the inputs must match that
    record."""
    with ExitStack() as stack:
        if request.recipe is not None:
            from model_merging_methods.recipes.opening import open_recipe  # imports YAML

            opened, findings = open_recipe(request, stack)
        else:
            opened, findings = check_inputs(request, stack, allow_unrelated or made_from is not None)
        if made_from is not None:
            with findings.collect():
                check_sizes_against_record(made_from, request)
        elif opened is not None and opened.have_values and not allow_unrelated:
            with findings.collect():
                check_related(opened.parts[0].merge(request.parameters))
    return findings


def print_findings(
    make_request: Callable[[Path | None], MergeRequest], allow_unrelated: bool, made_from: Path | None = None
) -> int:
    """Print the findings of `check_merge`, one per line. Returns the exit status: 2 after an error, else 0.

    `make_request`: as in `request_of_headers`; for None, with all models downloaded."""
    findings, not_here = Findings(), {}
    with findings.collect(), request_of_headers(make_request) as (request, names):
        if request.has_headers:
            not_here = names
        else:
            request = make_request(None)
        findings.found += check_merge(request, allow_unrelated, made_from).found
    for finding in findings.found:
        print(f"{'error' if finding.is_error else 'warning'}: {with_names(finding.text, not_here)}")
    if not findings.found:
        print("no errors and no warnings")
    if not_here:
        print(f"not downloaded, so the values of their weights are not checked: {', '.join(not_here.values())}")
    return 2 if findings.errors else 0


def _open_folders(request: MergeRequest, stack: ExitStack, findings: Findings) -> list[Folder | None]:
    """All folders, the pretrained model's first; None for one that cannot be read."""
    folders: list[Folder | None] = []
    for folder in request.inputs.values():
        opened: Folder | None = None
        with findings.collect():
            if folders and is_adapter_folder(folder):
                opened = None if folders[BASE] is None else _open_adapter(folder, folders[BASE], findings)
            else:
                opened = stack.enter_context(CheckpointFolder(folder))
                _warn_about_pickled(folder, findings)
        folders.append(opened)
    return folders


def _open_adapter(folder: Path, pretrained: CheckpointFolder, findings: Findings) -> AdaptedFolder:
    opened = AdaptedFolder(folder, pretrained)
    base, own = opened.made_for, model_name(pretrained.folder)
    if base and Path(base).name.lower() != Path(own).name.lower():
        findings.warn(
            f"{folder}: this adapter was made for {base} but is applied to {own}; check that these are the same model"
        )
    return opened


def _warn_about_pickled(folder: Path, findings: Findings) -> None:
    pickled = ignored_pickled_files(folder)
    if pickled:
        findings.warn(
            f"{folder}: holds both safetensors files and {', '.join(pickled[:2])}; the safetensors files are read"
        )


def _check_exclusions(merge: Merge) -> None:
    """Raise UserError for a pattern that matches nothing, or if nothing is left to merge."""
    for pattern in merge.parameters.exclude_param_names_regex:
        if not any(re.search(pattern, name) for name in (*merge.models.forms, *merge.models.left_out)):
            raise UserError(f"--exclude_param_names_regex {pattern}: matches no parameter's name; remove it")
    if not merge.merged_names:
        raise UserError("--exclude_param_names_regex: matches every parameter, so nothing is left to merge")


def _check_values(merge: Merge, findings: Findings) -> None:
    """Warn about values that are not merged or lose precision."""
    models = merge.models
    integers = [name for name, form in models.forms.items() if not is_floating(form.dtype)]
    for number, model in enumerate(models.models[1:], start=1):
        has_values = model.has_values and models.models[BASE].has_values
        differing = [name for name in integers if has_values and not _holds_base_values(models, number, name)]
        if differing:
            dtype = LONG_NAMES[models.forms[differing[0]].dtype]
            findings.warn(
                f"{model.folder}: {_count(differing)} ({dtype}) differs from the pretrained model's; only "
                "floating-point tensors are merged, so the pretrained model's values are kept"
            )
    doubles = {
        name: None
        for number, model in enumerate(models.models)
        for name in merge.merged_names
        if models.stored_tensor(number, name).dtype == "F64"
    }
    if doubles:
        findings.warn(f"{_count(list(doubles))} is stored in float64; merges compute in float32, as in the paper")


def _holds_base_values(models: AlignedModels, model: int, name: str) -> bool:
    """Whether a model's tensor, if it has it, holds the same bytes as the pretrained model's."""
    if not models.has(model, name):
        return True
    base, own = models.stored_tensor(BASE, name), models.stored_tensor(model, name)
    if (base.dtype, base.shape) != (own.dtype, own.shape):
        return False
    values = [np.empty(base.numel * base.item_size, np.uint8) for _ in range(2)]
    for buffer, number in zip(values, (BASE, model), strict=True):
        models.models[number].read_into(buffer, models.stored_name(number, name), 0, base.numel)
    return np.array_equal(*values)


def _count(names: Sequence[str]) -> str:
    return f"tensor {names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
