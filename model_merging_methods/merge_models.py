"""From checkpoint folders to a merged model folder, whole or not at all."""

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.aligned_models import AlignedModels
from model_merging_methods.checkpoints.checkpoint_writer import (
    LARGEST_SHARD,
    CheckpointWriter,
    Shard,
    TensorForm,
    plan_shards,
    write_index,
)
from model_merging_methods.checkpoints.model_files import output_forms, write_model_files
from model_merging_methods.kernels.block_arithmetic import choose_device
from model_merging_methods.merge_checks import check_related, comparison
from model_merging_methods.merge_engine import BLOCK_SIZE, Merge, TensorReport
from model_merging_methods.merge_parameters import run_name
from model_merging_methods.merge_progress import MergeProgress
from model_merging_methods.merge_record import (
    CARD_FILE,
    RECORD_FILE,
    RECORD_FORMAT,
    MergeRequest,
    check_against_record,
    check_sizes_against_record,
    find_damage,
    fingerprint_inputs,
    input_states,
    is_same_merge,
    list_output_files,
    make_record,
    read_record,
)
from model_merging_methods.model_card import model_card
from model_merging_methods.preflight import check_inputs
from utils.content_hashes import STRETCH, FileStates, check_unchanged, tensors_hash
from utils.errors import UserError
from utils.weight_files import INDEX_FILE
from utils.whole_files import (
    empty_folder,
    finish_replacing,
    is_half_replaced,
    locked,
    remove_left_lock,
    whole_folder,
    write_json,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeWork:
    """How a merge is done; nothing of this changes a result (a GPU, at most the last place).

    `device` is one of `merge_parameters.DEVICES`, `largest_shard` in bytes. `allow_unrelated` lets models of
    different backbones pass.
    """

    device: str = "cpu"
    allow_unrelated: bool = False
    threads: int | None = None
    block_size: int = BLOCK_SIZE
    largest_shard: int = LARGEST_SHARD


def merge_models(
    request: MergeRequest,
    targets: Mapping[str, Path],
    *,
    overwrite: bool = False,
    made_from: Path | None = None,
    work: MergeWork = MergeWork(),
) -> None:
    """Merge, and save one model folder for each role in `targets`, with that role's tokenizer.

    The weights are written once; the other folders hard-link them. A target that already is this merge is
    left as it is; what an interrupted run of this merge left is gone on with. `made_from` is the record that the
    inputs must agree with, if there is one.

    Raises UserError, leaving nothing behind, for inputs that cannot be merged or are not related, for a target
    that holds something else (unless `overwrite`), and where the disk has no room.
    """
    request.parameters.check(len(request.finetuned))
    if len(request.finetuned) < 2:
        raise UserError("a merge takes two models or more: give two of the --merge_* options")
    for target in targets.values():
        _check_place(target, request)
        if is_half_replaced(target):
            with locked(target):
                finish_replacing(target)
    work = replace(work, device=choose_device(work.device))
    if made_from is not None:
        check_sizes_against_record(made_from, request)
    before, read_since = input_states(request), time.time()
    # Without locks first: many commands may use one finished merge at once.
    if not overwrite and all(_is_done(target, request) for target in targets.values()):
        for target in targets.values():
            remove_left_lock(target)
        _say_already_merged(targets)
        return
    with ExitStack() as stack:
        for target in targets.values():
            stack.enter_context(locked(target))
        wanted = {role: target for role, target in targets.items() if overwrite or not _is_done(target, request)}
        if not wanted:
            _say_already_merged(targets)
            return
        finished = next((target for role, target in targets.items() if role not in wanted), None)
        models, findings = check_inputs(request, stack, work.allow_unrelated or made_from is not None, wanted)
        findings.stop_at_errors()
        for warning in findings.warnings:
            log.warning("warning: %s", warning.text)
        record: dict | None = None
        weights: dict[str, str] = {}
        for role, target in wanted.items():
            with whole_folder(target, replace=overwrite, is_locked=True) as folder:
                if finished is None:
                    inputs = Inputs(models, before, read_since)
                    record, weights = _merge_into(folder, request, inputs, made_from, work)
                    record["found"]["warnings"] = [finding.text for finding in findings.warnings]
                else:
                    empty_folder(folder)
                    _link_into(folder, finished)
                    if record is None:
                        record, weights = _recorded(finished)
                write_model_files(request, models, role, folder)
                warnings = record["found"]["warnings"]
                (folder / CARD_FILE).write_text(model_card(request, role, warnings), encoding="utf-8")
                outputs = [asdict(file) for file in list_output_files(folder, weights)]
                check_unchanged(before, input_states(request))
                write_json(folder / RECORD_FILE, {**record, "outputs": outputs, "tokenizer_from": role})
            finished = target
            log.info("saved %s", target)


def _say_already_merged(targets: Mapping[str, Path]) -> None:
    log.info("already merged: %s", ", ".join(str(target) for target in targets.values()))


def _check_place(target: Path, request: MergeRequest) -> None:
    """Raise UserError where a model folder can never be put."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target}: is not a folder; remove it or choose another --output_dir")
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(f"{parent}: is not a folder; remove it or choose another --output_dir")
    for folder in request.inputs.values():
        if target.resolve() == folder.resolve():
            raise UserError(f"{target}: is one of the models to merge; choose another --output_dir")


def _is_done(target: Path, request: MergeRequest) -> bool:
    """Whether `target` already is this merge. Raises UserError where it is something else, or was damaged."""
    if not target.exists():
        return False
    if (target / RECORD_FILE).exists():
        record = read_record(target / RECORD_FILE)
        if is_same_merge(record, request):
            damage = find_damage(target, record)
            if damage is None:
                return True
            raise UserError(f"{damage}; make the merge again with --overwrite, or choose another --output_dir")
    raise UserError(
        f"{target}: holds the results of another run; choose another --output_dir, or replace it with --overwrite"
    )


@dataclass(frozen=True)
class Inputs:
    """The models of a merge, and the states in which their files were at the time `read_since`, before any was read."""

    models: AlignedModels
    states: FileStates
    read_since: float


def _merge_into(
    folder: Path, request: MergeRequest, inputs: Inputs, made_from: Path | None, work: MergeWork
) -> tuple[dict, dict[str, str]]:
    """Write merged weights and configs into `folder`; returns the record of it, and the hashes of the weight files."""
    models = inputs.models
    started, clock = datetime.now(UTC), time.monotonic()
    roles, parameters = list(request.finetuned), request.parameters
    merge = Merge(models, roles, parameters, work.device, work.threads, work.block_size)
    forms = output_forms(models, parameters)
    shards = plan_shards(forms, work.largest_shard)
    progress = MergeProgress(folder, _identity(request, inputs.states, shards, work), shards, work.block_size)
    read_since = 0.0 if progress.reports else inputs.read_since  # an interrupted run read some earlier
    left = [shard for shard in shards if shard.file not in progress.reports]
    if len(left) < len(shards):
        log.info("going on: %d of %d weight files were whole already", len(shards) - len(left), len(shards))
    _check_room(folder, sum(forms[name].bytes for shard in left for name in shard.names))
    if not work.allow_unrelated and made_from is None:
        check_related(merge)
    write_index(folder, shards, forms)
    if progress.coefficients is None:
        progress.keep_coefficients(merge.coefficients())
    sync_seconds = _write_shards(folder, left, forms, merge, progress)

    reports = {name: report for file in progress.reports.values() for name, report in file.items()}
    digests = _digests_of_inputs(reports, models)
    fingerprints = fingerprint_inputs(request, models.models, inputs.states, read_since, digests)
    check_unchanged(inputs.states, input_states(request))
    if made_from is not None:
        check_against_record(made_from, fingerprints)
    found_of_models = comparison(merge, {name: np.array(reports[name].sums) for name in merge.merged_names})
    for line in found_of_models.screen_lines():
        log.info("%s", line)
    progress.remove()
    found = {
        "number_of_parameters": merge.number_of_parameters,
        "trim_thresholds": list(progress.coefficients.trim_thresholds),
        "majority_sign": progress.coefficients.majority_sign,
        "vocabulary_rows": models.vocabulary.rows,
        "added_tokens": _added_tokens(models),
        "models": found_of_models.to_record(),
    }
    times = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
        "sync_seconds": round(sync_seconds, 2),
        "device": work.device,
    }
    record = make_record(request, fingerprints, run_name(parameters, len(roles)), found, times)
    return record, _weight_hashes(shards, forms, reports) if work.block_size == STRETCH else {}


def _weight_hashes(
    shards: Sequence[Shard], forms: Mapping[str, TensorForm], reports: Mapping[str, TensorReport]
) -> dict[str, str]:
    """The content hash of every weight file, from the digests of what was written."""
    return {
        shard.file: tensors_hash(
            (name, forms[name].dtype, forms[name].shape, reports[name].output) for name in shard.names
        )
        for shard in shards
    }


def _write_shards(
    folder: Path, shards: Sequence[Shard], forms: Mapping[str, TensorForm], merge: Merge, progress: MergeProgress
) -> float:
    """Merge into these shards; each is synced, and its report kept, while the next are merged. Returns for how many
    seconds the last syncs were waited for."""
    with CheckpointWriter(folder, shards, forms) as writer, ThreadPoolExecutor(1) as pool:
        kept = []

        def keep(shard: Shard, reports: dict[str, TensorReport]) -> None:
            writer.sync(shard)
            progress.keep_shard(shard, reports)

        merge.write(writer, progress.coefficients, lambda *finished: kept.append(pool.submit(keep, *finished)))
        clock = time.monotonic()
        for future in kept:
            future.result()
        return time.monotonic() - clock


def _identity(request: MergeRequest, states: FileStates, shards: Sequence[Shard], work: MergeWork) -> dict:
    """All that the bytes of an unfinished merge depend on."""
    return {
        "format": RECORD_FORMAT,
        "parameters": request.parameters.to_fields(),
        "roles": list(request.inputs),
        "inputs": [[str(path.resolve()), state] for path, state in states.items()],
        "shards": [asdict(shard) for shard in shards],
        "device": work.device,
        "block_size": work.block_size,
    }


def _digests_of_inputs(reports: Mapping[str, TensorReport], models: AlignedModels) -> list[dict[str, str]]:
    """For each model the digests of the tensors that the merge has read, by the model's own names."""
    return [
        {
            models.stored_name(model, name): report.inputs[model]
            for name, report in reports.items()
            if report.inputs[model] is not None
        }
        for model in range(len(models.models))
    ]


def _link_into(folder: Path, finished: Path) -> None:
    """Put the weights of the `finished` folder of another role into `folder`."""
    for path in finished.iterdir():
        if path.suffix == ".safetensors":
            _link_or_copy(path, folder / path.name)
        elif path.name == INDEX_FILE:
            shutil.copyfile(path, folder / path.name)


def _recorded(finished: Path) -> tuple[dict, dict[str, str]]:
    """The record of a folder that an earlier run finished, and the hashes of the weight files that it has."""
    record = read_record(finished / RECORD_FILE)
    record["found"].setdefault("warnings", [])  # older records have none
    outputs = [] if isinstance(record["outputs"], dict) else record["outputs"]
    hashes = {file["name"]: file["xxh3_128"] for file in outputs if file["name"].endswith(".safetensors")}
    return {**record, "format": RECORD_FORMAT}, hashes


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _added_tokens(models: AlignedModels) -> dict[str, int]:
    """The merged vocabulary's tokens that lie behind the pretrained model's own rows or in its padding."""
    base_map = models.vocabulary.row_maps[0]
    if base_map is None:
        return {}
    return {token: row for token, row in models.vocabulary.tokens.items() if base_map[row] < 0}


def _check_room(folder: Path, needed: int) -> None:
    """Raise UserError unless the disk has room for the merged weights, before the first byte is written."""
    free = shutil.disk_usage(folder).free
    needed += 64 * 1024 * 1024  # headers, configs, tokenizers
    if free < needed:
        raise UserError(
            f"{folder.parent}: {free / 1e9:.1f} GB free where the merged model takes {needed / 1e9:.1f} GB; "
            "make room or choose another --output_dir"
        )
