"""The commands of a cell on the models and the machine at hand, the files they read, and the results they leave."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.tasks import TASKS
from model_merging_methods.command_line import chosen_roles, merge_parameters, request_of_folders
from model_merging_methods.merge_parameters import run_name
from model_merging_methods.merge_record import (
    PRETRAINED,
    RECORD_FILE,
    is_same_merge,
    list_input_files,
    read_record,
    tasks_name,
)
from scripts.paper_tables.cells import (
    CLASSIFIER_RESULTS,
    MAIN_JOB,
    MERGED,
    Cell,
    merge_namespace,
    merge_of_options,
    option_words,
)
from utils.content_hashes import files_hash
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.model_folders import FINETUNED_MODELS, HUB_IDS, PRETRAINED_MODEL, local_model_folder
from utils.output_places import OutputPlaces

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = "tiny"
TINY_ZOO = Path("scripts/tiny_zoo")
TINY_EXAMPLES = 30
TINY_ATTACK = {"num_samples": 20, "query_budget": 40}
TINY_BERT = str(TINY_ZOO / "masked")
ATTACK_MODELS = ("mask_lm", "sentence_encoder", "word_vectors")
NO_EFFECT = ("tensor_parallel_size", "overwrite")  # options that change no result


@dataclass(frozen=True)
class Setting:
    """The options of a run of tables. `models`: `tiny`, a folder that holds the paper's models, or None for the working
    folder and the hub."""

    results_dir: Path
    models: str | None
    data_dir: Path | None
    backend: str
    tensor_parallel_size: int | None

    @property
    def is_tiny(self) -> bool:
        return self.models == TINY

    @property
    def sets(self) -> Path | None:
        """The folder of the sets' files, from the project's root; the tiny models have their own sets."""
        return TINY_ZOO / "data" if self.is_tiny and self.data_dir is None else self.data_dir


@dataclass(frozen=True)
class Command:
    """A call of an entry script at the project's root."""

    script: str
    options: dict[str, Any]

    @property
    def words(self) -> list[str]:
        return [self.script, *option_words(self.options)]

    @property
    def text(self) -> str:
        return shlex.join(["python", *self.words])

    @property
    def data(self) -> dict[str, Any]:
        """The parts that results depend on."""
        return {"script": self.script, "options": effective(self.options)}


def effective(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in NO_EFFECT}


def cell_commands(cell: Cell, setting: Setting) -> list[Command]:
    """The commands of a cell; a merge comes before what runs on it."""
    merge = {**cell.merge, **_model_options(cell, setting)}
    options, output_dir = dict(cell.options), {"output_dir": str(output_root(cell, setting))}
    if cell.script == MAIN_JOB:
        examples = {"end_index": TINY_EXAMPLES} if setting.is_tiny and "end_index" not in options else {}
        return [Command(MAIN_JOB, {**merge, **options, **_run_options(setting), **examples, **output_dir})]
    model = str(merged_model(cell, setting))
    options = {name: model if value == MERGED else value for name, value in options.items()}
    if setting.is_tiny and cell.is_attack:  # a tiny model chooses the words of bertattack
        bert = {"mask_lm": TINY_BERT, "sentence_encoder": TINY_BERT} if "bertattack" in cell.attacks else {}
        output_dir = {**TINY_ATTACK, **bert, **output_dir}
    return [
        Command(MAIN_JOB, {**merge, "merge_only": True, "output_dir": str(output_root(cell, setting))}),
        Command(cell.script, {**options, **_run_options(setting), **output_dir}),
    ]


def _model_options(cell: Cell, setting: Setting) -> dict[str, str]:
    if setting.models is None:
        return {}
    if not setting.is_tiny:
        return {"models_dir": setting.models}
    roles = chosen_roles(merge_namespace(cell.merge))
    folders = {role: TINY_ZOO / role for role in roles}
    if cell.is_attack:
        folders[roles[0]] = TINY_ZOO / "classify"
    folders = {PRETRAINED: TINY_ZOO / "base", **folders}
    return {f"{role}_model": str(folder) for role, folder in folders.items()}


def _run_options(setting: Setting) -> dict[str, Any]:
    options: dict[str, Any] = {} if setting.sets is None else {"data_dir": str(setting.sets)}
    options["backend"] = setting.backend
    if setting.tensor_parallel_size is not None:
        options["tensor_parallel_size"] = setting.tensor_parallel_size
    return options


def output_root(cell: Cell, setting: Setting) -> Path:
    return setting.results_dir / CLASSIFIER_RESULTS if setting.is_tiny and cell.is_attack else setting.results_dir


def merge_places(cell: Cell, setting: Setting) -> OutputPlaces:
    """The places of the outputs of a cell's merge. Raises UserError if its options are wrong."""
    roles, parameters = merge_of_options(cell.merge)
    return OutputPlaces(output_root(cell, setting), tasks_name(roles), run_name(parameters, len(roles)))


def merged_model(cell: Cell, setting: Setting) -> Path:
    """The merged folder that a cell runs on: the one with the first model's tokenizer."""
    return merge_places(cell, setting).merged_model(chosen_roles(merge_namespace(cell.merge))[0])


def merge_record_path(places: OutputPlaces) -> Path | None:
    """The record of a merge: beside its weights, else the copy that outlives them."""
    beside = sorted((places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}/{RECORD_FILE}"))
    return next((path for path in (*beside, places.kept_record()) if path.is_file()), None)


def holds_other_merge(cell: Cell, setting: Setting) -> bool:
    """Whether the merge on record in a cell's place differs from the one its commands make. Its weights may have been
    deleted."""
    record = merge_record_path(merge_places(cell, setting))
    if record is None:
        return False
    options = merge_namespace({**cell.merge, **_model_options(cell, setting)})
    roles = chosen_roles(options)
    request = request_of_folders(options, roles, merge_parameters(options, roles))
    return not is_same_merge(read_record(record), request)


def result_files(cell: Cell, setting: Setting) -> list[Path]:
    """The files that a finished cell leaves: scores, or the results of attacks."""
    places = merge_places(cell, setting)
    return [places.adversarial_result(cell.tasks[0], attack) for attack in cell.attacks] or [places.scores()]


def existing_results(cell: Cell, setting: Setting) -> dict[str, dict[str, Any]]:
    """The readable results of a cell, by attack or else by task."""
    files = [_read_result(path) for path in result_files(cell, setting)]
    if cell.attacks:
        return {attack: result for attack, result in zip(cell.attacks, files, strict=True) if result}
    return {task: files[0][task] for task in cell.tasks if isinstance(files[0].get(task), dict)}


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, "")
    except UserError:
        return {}


def hash_inputs(cell: Cell, setting: Setting) -> dict[str, str]:
    """The content hashes of the models and sets that are on this machine."""
    return {name: files_hash(files) for name, files in input_files(cell, setting).items()}


def input_files(cell: Cell, setting: Setting) -> dict[str, Sequence[Path]]:
    """The files of each model and set that are on this machine."""
    folders = _model_folders(merge_namespace({**cell.merge, **_model_options(cell, setting)}))
    found = {f"{role} model": list_input_files(folder) for role, folder in folders.items() if folder is not None}
    data_dir = None if setting.sets is None else ROOT / setting.sets
    for task in cell.tasks:
        found[f"{task} set"] = _set_files(task, data_dir)
    options = cell_commands(cell, setting)[-1].options
    for name in ATTACK_MODELS:
        if name in options:
            path = ROOT / options[name]
            found[f"--{name}"] = [file for file in sorted([path, *path.rglob("*")]) if file.is_file()]
    return {name: files for name, files in found.items() if files}


def _set_files(task: str, data_dir: Path | None) -> Sequence[Path]:
    if task in TASKS:
        return TASKS[task].data_set.files_in(data_dir)
    attacked = None if data_dir is None else data_dir / f"{task}_dev.tsv"
    return [] if attacked is None or not attacked.is_file() else [attacked]


def _model_folders(options) -> dict[str, Path | None]:
    """The folder of each model of a merge; None if it is not on this machine."""
    names = {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in chosen_roles(options)}}
    folders = {}
    for role, name in names.items():
        given, of_paper = getattr(options, f"{role}_model"), ROOT / (options.models_dir or "") / name
        if given is not None:
            folders[role] = local_model_folder(given, ROOT)
        else:
            folders[role] = of_paper if of_paper.is_dir() else local_model_folder(HUB_IDS[name], ROOT)
    return folders
