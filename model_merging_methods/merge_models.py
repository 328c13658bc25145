"""From checkpoint folders to a merged model folder, whole or not at all."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from threading import Event

import torch

from model_merging_methods.aligned_models import AlignedModels, tokenizer_folder
from model_merging_methods.checkpoint_folder import INDEX_FILE, CheckpointFolder
from model_merging_methods.checkpoint_writer import LARGEST_SHARD, CheckpointWriter, TensorForm
from model_merging_methods.merge_engine import BLOCK_SIZE, Merge
from model_merging_methods.merge_parameters import MergeParameters, run_name
from model_merging_methods.merge_record import (
    RECORD_FILE,
    InputFile,
    MergeRequest,
    check_against_record,
    fingerprint_inputs,
    is_same_merge,
    make_record,
    read_record,
)
from model_merging_methods.model_card import model_card
from model_merging_methods.vocabulary import write_tokenizer
from utils.errors import UserError
from utils.whole_files import remove_replaced, whole_folder, write_json

log = logging.getLogger(__name__)


def merge_models(
    request: MergeRequest,
    targets: Mapping[str, Path],
    *,
    overwrite: bool = False,
    made_from: Path | None = None,
    threads: int | None = None,
    block_size: int = BLOCK_SIZE,
    largest_shard: int = LARGEST_SHARD,
) -> None:
    """Merge, and save one model folder for each role in `targets`, with that role's tokenizer.

    The weights are written once; the other folders hard-link them. A target that already is this merge is
    left as it is. `made_from` is the record that the inputs must agree with, if there is one.

    Raises UserError, leaving nothing behind, for inputs that cannot be merged, for a target that holds
    something else (unless `overwrite`), and where the disk has no room.
    """
    request.parameters.check(len(request.finetuned))
    if len(request.finetuned) < 2:
        raise UserError("a merge takes two models or more: give two of the --merge_* options")
    for target in targets.values():
        _check_place(target, request)
    inputs = None
    if made_from is not None:
        inputs = fingerprint_inputs(request)
        check_against_record(made_from, inputs)
    wanted = {role: target for role, target in targets.items() if overwrite or not _is_done(target, request)}
    if not wanted:
        log.info("already merged: %s", ", ".join(str(target) for target in targets.values()))
        return
    finished = next((target for role, target in targets.items() if role not in wanted), None)
    with _opened(request) as models:
        _check_tokenizers(request, models, wanted)
        for role, target in wanted.items():
            with whole_folder(target, replace=overwrite) as folder:
                if finished is None:
                    record = _merge_into(folder, request, models, inputs, threads, block_size, largest_shard)
                else:
                    record = _link_into(folder, finished)
                write_tokenizer(_tokenizer_source(request, models, role), folder, models.vocabulary.tokens)
                (folder / "README.md").write_text(model_card(request, role), encoding="utf-8")
                write_json(folder / RECORD_FILE, {**record, "tokenizer_from": role})
            finished = target
            log.info("saved %s", target)


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
    remove_replaced(target)


def _is_done(target: Path, request: MergeRequest) -> bool:
    """Whether `target` already is this merge. Raises UserError where it is something else."""
    if not target.exists():
        return False
    if (target / RECORD_FILE).exists():
        record = read_record(target / RECORD_FILE)
        if is_same_merge(record, request) and record["outputs"] == _weight_sizes(target):
            return True
    raise UserError(
        f"{target}: holds the results of another run; choose another --output_dir, or replace it with --overwrite"
    )


def _weight_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}


@contextmanager
def _opened(request: MergeRequest) -> Iterator[AlignedModels]:
    with ExitStack() as stack:
        folders = [stack.enter_context(CheckpointFolder(folder)) for folder in request.inputs.values()]
        yield AlignedModels(folders[0], folders[1:])


def _merge_into(
    folder: Path,
    request: MergeRequest,
    models: AlignedModels,
    inputs: dict[str, list[InputFile]] | None,
    threads: int | None,
    block_size: int,
    largest_shard: int,
) -> dict:
    """Write merged weights and configs into the empty `folder`; returns the record of it. The inputs are
    fingerprinted beside the merge, unless that was done before."""
    forms = _output_forms(models, request.parameters)
    _check_room(folder, sum(form.bytes for form in forms.values()))
    started, clock = datetime.now(timezone.utc), time.monotonic()
    _write_configs(models, request.parameters, folder)
    with ThreadPoolExecutor(1) as pool, _set_at_the_end(Event()) as stop:
        fingerprints = pool.submit(lambda: inputs or fingerprint_inputs(request, stop))
        with CheckpointWriter(folder, forms, largest_shard) as writer:
            merge = Merge(models, list(request.finetuned), request.parameters, threads, block_size)
            coefficients = merge.write(writer)
    found = {
        "number_of_parameters": models.number_of_parameters,
        "trim_thresholds": list(coefficients.trim_thresholds),
        "majority_sign": coefficients.majority_sign,
        "vocabulary_rows": models.vocabulary.rows,
        "added_tokens": _added_tokens(models),
    }
    times = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
    }
    name = run_name(request.parameters, len(request.finetuned))
    return make_record(request, fingerprints.result(), name, found, _weight_sizes(folder), times)


@contextmanager
def _set_at_the_end(event: Event) -> Iterator[Event]:
    """Set `event` when the block ends, well or not, so that a thread that minds it ends too."""
    try:
        yield event
    finally:
        event.set()


def _link_into(folder: Path, finished: Path) -> dict:
    """Put the weights and configs of the `finished` folder of another role into `folder`; returns its record."""
    for path in finished.iterdir():
        if path.suffix == ".safetensors":
            _link_or_copy(path, folder / path.name)
        elif path.name in ("config.json", "generation_config.json", INDEX_FILE):
            shutil.copyfile(path, folder / path.name)
    return read_record(finished / RECORD_FILE)


def _check_tokenizers(request: MergeRequest, models: AlignedModels, roles: Iterable[str]) -> None:
    """Raise UserError for a tokenizer that cannot take the merged ids, before the long work."""
    for role in roles:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(_tokenizer_source(request, models, role), Path(folder), models.vocabulary.tokens)


def _tokenizer_source(request: MergeRequest, models: AlignedModels, role: str) -> Path:
    pretrained, *finetuned = models.models
    return tokenizer_folder(finetuned[list(request.finetuned).index(role)], pretrained)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_configs(models: AlignedModels, parameters: MergeParameters, folder: Path) -> None:
    """The pretrained model's config and generation config, with the merged rows and the saved dtype."""
    pretrained = models.models[0]
    config = dict(pretrained.config)
    if models.vocabulary.rows:
        config["vocab_size"] = models.vocabulary.rows
    if parameters.dtype is not None:
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
            config[key] = parameters.dtype
    write_json(folder / "config.json", config)
    if (pretrained.folder / "generation_config.json").exists():
        shutil.copyfile(pretrained.folder / "generation_config.json", folder / "generation_config.json")


def _output_forms(models: AlignedModels, parameters: MergeParameters) -> dict[str, TensorForm]:
    if parameters.dtype is None:
        return models.forms
    dtype = getattr(torch, parameters.dtype)
    return {
        name: TensorForm(dtype, form.shape) if form.dtype.is_floating_point else form
        for name, form in models.forms.items()
    }


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
