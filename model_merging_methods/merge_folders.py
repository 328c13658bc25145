"""Merge checkpoint folders into model folders, each whole or not at all."""

import logging
import os
import shutil
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from model_merging_methods.checkpoints.checkpoint_writer import (
    LARGEST_SHARD,
    CheckpointWriter,
    Shard,
    TensorForm,
    plan_shards_of_parts,
    write_index,
)
from model_merging_methods.checkpoints.fingerprints import fingerprint_inputs
from model_merging_methods.checkpoints.model_files import output_forms
from model_merging_methods.checkpoints.vocabulary import AlignedVocabulary
from model_merging_methods.comparison import check_related, merge_comparison
from model_merging_methods.engine import BLOCK_SIZE, Merge, TensorReport
from model_merging_methods.kernels.arithmetic import choose_device
from model_merging_methods.merge_progress import MergeProgress
from model_merging_methods.merge_record import (
    CARD_FILE,
    RECORD_FILE,
    RECORD_FORMAT,
    check_against_record,
    check_sizes_against_record,
    find_damage,
    is_same_merge,
    list_output_files,
    make_record,
    read_record,
)
from model_merging_methods.merge_request import RECIPE, MergeRequest
from model_merging_methods.model_card import model_card
from model_merging_methods.opened_models import OpenedModels, Part
from model_merging_methods.preflight import check_inputs
from model_merging_methods.statistics import Statistics
from utils.content_hashes import STRETCH, FileStates, check_unchanged, tensors_hash
from utils.errors import UserError
from utils.safetensors_files import ITEM_SIZES
from utils.weight_files import INDEX_FILE
from utils.whole_files import (
    empty_folder,
    finish_replacing,
    is_free,
    is_half_replaced,
    locked,
    remove_left_lock,
    whole_folder,
    write_json,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeWork:
    """Settings of a run that do not affect the result (except for the last digit on a GPU).

    `device` is one of `merge_request.DEVICES`. Weight files have at most `largest_shard` bytes, or `values_per_file`
    values if that is given. `allow_unrelated` accepts models of different backbones.
    """

    device: str = "cpu"
    allow_unrelated: bool = False
    threads: int | None = None
    block_size: int = BLOCK_SIZE
    largest_shard: int = LARGEST_SHARD
    values_per_file: int | None = None


@dataclass(frozen=True)
class MergeInputs:
    """The opened models of a merge, and the states of their files at the time `read_since`, before any was read. If
    `made_from` is given, the inputs must match that record."""

    opened: OpenedModels
    states: FileStates
    read_since: float
    made_from: Path | None


def merge_folders(
    request: MergeRequest,
    targets: Mapping[str, Path],
    *,
    overwrite: bool = False,
    made_from: Path | None = None,
    work: MergeWork = MergeWork(),
) -> None:
    """Merge, and save one model folder for each role in `targets`, with that role's tokenizer.

    The weights are written once; the other folders hard-link them. A target that already holds this merge does not
    change, and an interrupted run of this merge is resumed. If `made_from` is given, the inputs must match that record.

    Raises UserError, leaving nothing behind, for inputs that cannot be merged or are not related, for a target that
    holds anything else (unless `overwrite`), and for a full disk.
    """
    request.check()
    for target in targets.values():
        _check_place(target, request)
        if is_half_replaced(target):
            with locked(target):
                finish_replacing(target)
    work = replace(
        work,
        device=choose_device(work.device),
        allow_unrelated=work.allow_unrelated or made_from is not None or request.recipe is not None,
    )
    if made_from is not None:
        check_sizes_against_record(made_from, request)
    states, read_since = request.input_states(), time.time()
    # Without locks first: many commands may use one finished merge at once.
    if not overwrite and all(_is_done(target, request) for target in targets.values()):
        for target in targets.values():
            remove_left_lock(target)
        unfinished = {}
    else:
        with ExitStack() as stack:
            for target in targets.values():
                stack.enter_context(locked(target))
            unfinished = {role: path for role, path in targets.items() if overwrite or not _is_done(path, request)}
            if unfinished:
                if request.recipe:
                    from model_merging_methods.recipes.opening import open_recipe  # imports YAML

                    written = stack.enter_context(_written_documents(request, next(iter(unfinished.values())), work))
                    opened, findings = open_recipe(request, stack, written)
                else:
                    opened, findings = check_inputs(request, stack, work.allow_unrelated, unfinished)
                findings.stop_at_errors()
                for warning in findings.warnings:
                    log.warning("warning: %s", warning.text)
                finished = next((target for role, target in targets.items() if role not in unfinished), None)
                inputs = MergeInputs(opened, states, read_since, made_from)
                warnings = [finding.text for finding in findings.warnings]
                _make_folders(request, inputs, unfinished, finished, warnings, overwrite, work)
    if not unfinished:
        log.info("already merged: %s", ", ".join(map(str, targets.values())))


@contextmanager
def _written_documents(request: MergeRequest, target: Path, work: MergeWork) -> Iterator[Path]:
    """A hidden folder beside `target` with the models of earlier documents that must be written, removed at the end.
    After a kill or Ctrl-C it stays, and the next run goes on from it."""
    place = target.with_name(f".{target.name}.documents")
    try:
        _write_documents(request, place, work)
        yield place
    except Exception:
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _write_documents(request: MergeRequest, place: Path, work: MergeWork) -> None:
    from model_merging_methods.recipes.made_model import must_be_written
    from model_merging_methods.recipes.opening import place_of

    for made in request.made.values():
        if must_be_written(made, request):
            log.info("merging document %s of the recipe", made.recipe.recipe.name)
            folder = place_of(made, place)
            place.mkdir(parents=True, exist_ok=True)
            merge_folders(made, {RECIPE: folder}, overwrite=not _is_left(folder, made), work=work)
        else:
            _write_documents(made, place, work)


def _is_left(folder: Path, made: MergeRequest) -> bool:
    """Whether a killed run has left this merge in a scratch folder, and not one of a recipe that has changed since."""
    try:
        return _is_done(folder, made)
    except UserError:
        return False


def _make_folders(
    request: MergeRequest,
    inputs: MergeInputs,
    targets: Mapping[str, Path],
    finished: Path | None,
    warnings: Sequence[str],
    overwrite: bool,
    work: MergeWork,
) -> None:
    """Make the folders of the merge by role. The first is merged into, unless another role's folder is `finished`; the
    others share its weights."""
    record, hashes = ({}, {}) if finished is None else _read_finished(finished)
    for role, target in targets.items():
        with whole_folder(target, replace=overwrite, is_locked=True) as folder:
            if finished is None:
                record, hashes = _merge_into(folder, request, inputs, work)
                record["found"]["warnings"] = [*warnings, *record["found"]["warnings"]]
            else:
                empty_folder(folder)
                _link_weights(folder, finished)
            inputs.opened.write_files(role, folder)
            card = model_card(request, role, record["found"]["warnings"])
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            outputs = [asdict(file) for file in list_output_files(folder, hashes)]
            check_unchanged(inputs.states, request.input_states())
            write_json(folder / RECORD_FILE, {**record, "outputs": outputs, "tokenizer_from": role})
        finished = target
        log.info("saved %s", target)


def _check_place(target: Path, request: MergeRequest) -> None:
    """Raise UserError if the merged model can never be written to `target`."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target}: is not a folder; remove it or choose another output folder")
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(f"{parent}: is not a folder; remove it or choose another output folder")
    whole = target.resolve()
    for _, folder in request.all_folders():
        if whole == folder.resolve():
            raise UserError(f"{target}: is one of the models to merge; choose another output folder")
        if folder.resolve().is_relative_to(whole):
            raise UserError(f"{target}: contains {folder}, one of the models to merge; choose another output folder")
    if Path.cwd().is_relative_to(whole):
        raise UserError(f"{target}: is the working folder, or contains it; choose another output folder")
    if not is_free(target) and not any((target / name).exists() for name in ("config.json", RECORD_FILE)):
        raise UserError(f"{target}: holds files, but no model; choose another output folder")


def _is_done(target: Path, request: MergeRequest) -> bool:
    """Whether `target` already holds this merge. Raises UserError if it holds anything else or is damaged."""
    if is_free(target):
        return False
    if (target / RECORD_FILE).exists():
        record = read_record(target / RECORD_FILE)
        if is_same_merge(record, request):
            damage = find_damage(target, record)
            if damage is None:
                return True
            raise UserError(f"{damage}; make the merge again with --overwrite, or choose another output folder")
    raise UserError(
        f"{target}: holds the results of another run; choose another output folder, or replace it with --overwrite"
    )


def _merge_into(
    folder: Path, request: MergeRequest, inputs: MergeInputs, work: MergeWork
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the merged weights into `folder`. Returns the record, and the hashes of the weight files."""
    parts, parameters = inputs.opened.parts, request.parameters
    started, clock = datetime.now(UTC), time.monotonic()
    settings = {"device": work.device, "threads": work.threads, "block_size": work.block_size}
    merges = [part.merge(parameters, **settings) for part in parts]
    forms_of = [output_forms(part.models, parameters) for part in parts]
    largest = work.largest_shard
    if work.values_per_file is not None:
        largest = work.values_per_file * max(ITEM_SIZES[form.dtype] for own in forms_of for form in own.values())
    shards_of = plan_shards_of_parts(forms_of, largest)
    forms, shards = dict(ChainMap(*reversed(forms_of))), [shard for of_part in shards_of for shard in of_part]
    progress = MergeProgress(folder, _identity(request, inputs.states, shards, work), shards, work.block_size)
    read_since = 0.0 if progress.reports else inputs.read_since  # an interrupted run read some earlier
    sync_seconds = _write_weights(folder, list(zip(merges, shards_of, strict=True)), forms, progress, work)

    reports = {name: report for file in progress.reports.values() for name, report in file.items()}
    digests = _digests_of_inputs(reports, parts)
    fingerprints = fingerprint_inputs(request, inputs.opened.folders, inputs.states, read_since, digests)
    check_unchanged(inputs.states, request.input_states())
    if inputs.made_from is not None:
        check_against_record(inputs.made_from, fingerprints, request)
    comparisons = []
    for merge in (merge for merge in merges if merge.merged_names):
        sums = {name: np.array(reports[name].sums) for name in merge.merged_names}
        comparisons.append(merge_comparison(merge, sums))
        for line in comparisons[-1].screen_lines():
            log.info("%s", line)
        for warning in merge.warnings:
            log.warning("warning: %s", warning)
    progress.remove()
    vocabulary = inputs.opened.aligned.vocabulary
    found = {
        "number_of_parameters": sum(merge.number_of_parameters for merge in merges),
        **progress.statistics.of_model,
        "vocabulary_rows": vocabulary.rows,
        "added_tokens": _added_tokens(vocabulary),
        "models": comparisons[0].to_record(),
        "warnings": [warning for merge in merges for warning in merge.warnings],
    }
    if len(comparisons) > 1:
        found["models_of_other_slices"] = [comparison.to_record() for comparison in comparisons[1:]]
    times = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
        "sync_seconds": round(sync_seconds, 2),
        "device": work.device,
    }
    hashes = _weight_hashes(shards, forms, reports) if work.block_size == STRETCH else {}
    return make_record(request, fingerprints, found, times), hashes


def _write_weights(
    folder: Path,
    merges: Sequence[tuple[Merge, Sequence[Shard]]],
    forms: Mapping[str, TensorForm],
    progress: MergeProgress,
    work: MergeWork,
) -> float:
    """Merge each part into those of its shards that `progress` does not report as whole. Each shard is synced, and its
    report kept, while the next are merged. Returns the seconds spent waiting for the last syncs."""
    shards = [shard for _, of_part in merges for shard in of_part]
    left = [shard for shard in shards if shard.file not in progress.reports]
    if len(left) < len(shards):
        log.info("resuming: %d of %d weight files are whole already", len(shards) - len(left), len(shards))
    _check_room(folder, sum(forms[name].bytes for shard in left for name in shard.names))
    if not work.allow_unrelated:
        for merge, _ in merges:
            check_related(merge)
    write_index(folder, shards, forms)
    whole = [merge.memory_of_whole_tensors for merge, _ in merges if merge.needs_whole_tensors]
    if whole:
        memory, bound = max(whole)
        times = memory / bound if bound else 0
        more = f"; {times:.1f} times the largest tensor of all models and the result in float32" if times > 1 else ""
        log.info(
            "this merge needs whole tensors: up to %.2g GB of memory for them, or of a GPU's (--device)%s",
            memory / 1e9,
            more,
        )
    if progress.statistics is None:
        found = Statistics()
        for merge, _ in merges:
            found = found.plus(merge.statistics(before_writing=True))
        progress.keep_statistics(found)
    with CheckpointWriter(folder, left, forms) as writer, ThreadPoolExecutor(1) as pool:
        kept = []

        def keep(shard: Shard, reports: dict[str, TensorReport]) -> None:
            writer.sync(shard)
            progress.keep_shard(shard, reports)

        for merge, of_part in merges:
            own = [shard for shard in of_part if shard in left]
            merge.write(writer, own, progress.statistics, lambda *finished: kept.append(pool.submit(keep, *finished)))
        clock = time.monotonic()
        for future in kept:
            future.result()
        return time.monotonic() - clock


def _weight_hashes(
    shards: Sequence[Shard], forms: Mapping[str, TensorForm], reports: Mapping[str, TensorReport]
) -> dict[str, str]:
    """The content hash of every weight file, from the digests of the written tensors."""
    return {
        shard.file: tensors_hash(
            (name, forms[name].dtype, forms[name].shape, reports[name].output) for name in shard.names
        )
        for shard in shards
    }


def _identity(request: MergeRequest, states: FileStates, shards: Sequence[Shard], work: MergeWork) -> dict[str, Any]:
    """Everything that the bytes of an unfinished merge depend on. Other versions may declare other statistics, which
    the state does not hold."""
    statistics = [type(one).__name__ for one in request.parameters.declared.statistics]
    return {
        "format": RECORD_FORMAT,
        **_definition(request),
        **({"statistics": statistics} if statistics else {}),
        "inputs": [[str(path.resolve()), state] for path, state in states.items()],
        "shards": [asdict(shard) for shard in shards],
        "device": work.device,
        "block_size": work.block_size,
    }


def _definition(request: MergeRequest) -> dict[str, Any]:
    """What is merged, and how, also in earlier documents."""
    made = {role: _definition(of_role) for role, of_role in request.made.items()}
    return {
        "parameters": request.parameters.to_fields(),
        "recipe": request.recipe and request.recipe.fields,
        "roles": list(request.inputs),
        **({"made": made} if made else {}),
    }


def _digests_of_inputs(reports: Mapping[str, TensorReport], parts: Sequence[Part]) -> dict[Path, dict[str, str]]:
    """For each input folder the digests of the tensors that the merge has read, by their names there."""
    digests: dict[Path, dict[str, str]] = {}
    for models in (part.models for part in parts):
        for name in models.forms:
            for model, digest in enumerate(reports[name].inputs):
                if digest is not None:
                    stored = models.origin(model, name)
                    digests.setdefault(stored.folder.folder, {})[stored.name] = digest
    return digests


def _read_finished(finished: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The record of a folder that an earlier run finished, and the hashes of its weight files."""
    record = read_record(finished / RECORD_FILE)
    record["found"].setdefault("warnings", [])  # older records have none
    outputs = [] if isinstance(record["outputs"], dict) else record["outputs"]
    hashes = {file["name"]: file["xxh3_128"] for file in outputs if file["name"].endswith(".safetensors")}
    return {**record, "format": RECORD_FORMAT}, hashes


def _link_weights(folder: Path, finished: Path) -> None:
    """Link the weights of the `finished` folder of another role into `folder`; copy them if hard links do not work."""
    for path in finished.iterdir():
        if path.suffix == ".safetensors":
            try:
                os.link(path, folder / path.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, folder / path.name)
        elif path.name == INDEX_FILE:
            shutil.copyfile(path, folder / path.name)


def _added_tokens(vocabulary: AlignedVocabulary) -> dict[str, int]:
    """The merged vocabulary's tokens that come after the pretrained model's rows or are in its padding."""
    base_map = vocabulary.row_maps[0]
    if base_map is None:
        return {}
    return {token: row for token, row in vocabulary.tokens.items() if base_map[row] < 0}


def _check_room(folder: Path, needed: int) -> None:
    """Raise UserError, before the first byte is written, if the merged weights do not fit on the disk."""
    free = shutil.disk_usage(folder).free
    needed += 64 * 1024 * 1024  # headers, configs, tokenizers
    if free < needed:
        raise UserError(
            f"{folder.parent}: {free / 1e9:.1f} GB free, but the merged model needs {needed / 1e9:.1f} GB; "
            "make room or choose another output folder"
        )
