"""Cells in a setting: their commands, their input files, and whether they are done."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inference_llms.evaluators.alpaca_eval import Judge
from inference_llms.model_folder import check_tokenizer, output_places
from inference_llms.prompt_format import PAPER_PROMPTS, PromptFormat
from inference_llms.tasks import TASKS, reads_data_dir, role_of_task
from model_merging_methods.command_line import chosen_roles, merge_parameters, request_of_folders
from model_merging_methods.merge_record import PRETRAINED, is_same_merge, list_input_files, read_record, tasks_name
from model_merging_methods.merge_request import run_name
from scripts.paper_tables import cells
from scripts.paper_tables.cells import ALONE, MAIN_JOB, SEARCH, Cell, CellState
from scripts.paper_tables.method_scores import tested_examples
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
# Of each task, how many questions tune a method and how many test it.
PARTS, TINY_PARTS = {"num_validation": 50, "num_test": 200}, {"num_validation": 30}
ATTACK_MODELS = ("mask_lm", "sentence_encoder", "word_vectors")
NO_EFFECT = ("tensor_parallel_size", "overwrite")  # options that change no result


@dataclass(frozen=True)
class Setting:
    """The options of a run of tables. `models`: `tiny`, a folder that holds the paper's models, or None for the working
    folder and the hub. `judge`: AlpacaEval's, if one is chosen."""

    results_dir: Path
    models: str | None
    data_dir: Path | None
    backend: str
    tensor_parallel_size: int | None
    allow_code_execution: bool = False
    prompt_format: PromptFormat = PAPER_PROMPTS
    judge: Judge | None = None

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
        script = ["-m", self.script] if self.script == ALONE else [self.script]
        return [*script, *cells.option_words(self.options)]

    @property
    def text(self) -> str:
        return shlex.join(["python", *self.words])

    @property
    def data(self) -> dict[str, Any]:
        """The parts that results depend on."""
        return {"script": self.script, "options": _effective(self.options)}


def _effective(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in NO_EFFECT}


@dataclass(frozen=True)
class CellRun:
    """A cell in a setting. Raises UserError if the options of its merge are wrong."""

    cell: Cell
    setting: Setting

    @cached_property
    def roles(self) -> list[str]:
        return chosen_roles(cells.merge_namespace(self.cell.merge))

    @cached_property
    def places(self) -> OutputPlaces:
        """The places of the outputs of the merge, or of the fine-tune that runs alone."""
        root = self.setting.results_dir
        if self.cell.is_alone:
            return output_places(ROOT / self.model, root)
        if self.setting.is_tiny and self.cell.is_attack:
            root = root / cells.CLASSIFIER_RESULTS
        name = run_name(cells.merge_of_options(self.cell.merge)[1], len(self.roles))
        return OutputPlaces(root, tasks_name(self.roles), name)

    @property
    def tasks(self) -> list[str]:
        """The tasks that the cell runs here. A search scores answers itself: without permission it leaves out tasks
        whose answers are programs, and it has no judge for the answers of real models to AlpacaEval."""
        if not self.cell.is_search:
            return self.cell.tasks
        setting = self.setting
        known = [task for task in self.cell.tasks if setting.allow_code_execution or TASKS[task].program is None]
        return [task for task in known if setting.is_tiny or task != "alpaca_eval"]

    @property
    def merged_model(self) -> Path:
        """The merged folder that the cell runs on: the one with the first model's tokenizer."""
        return self.places.merged_model(self.roles[0])

    @property
    def model(self) -> str:
        """The folder or hub id of the model that the cell runs on."""
        if not self.cell.is_alone:
            return str(self.merged_model)
        role = self.roles[0]
        if self.setting.is_tiny:
            return str(TINY_ZOO / role)
        folder = Path(self.setting.models or "") / FINETUNED_MODELS[role]
        return str(folder) if (ROOT / folder).is_dir() else HUB_IDS[folder.name]

    @cached_property
    def commands(self) -> list[Command]:
        """The cell's commands; a merge comes before what runs on it."""
        cell, setting = self.cell, self.setting
        merge, options, output_dir = self._merge_options, dict(cell.options), {"output_dir": str(self.places.root)}
        has_sets = setting.sets is not None and reads_data_dir(cell.tasks)
        running = {"data_dir": str(setting.sets)} if has_sets else {}
        running |= {"backend": setting.backend, **setting.prompt_format.options()}
        if setting.tensor_parallel_size is not None:
            running["tensor_parallel_size"] = setting.tensor_parallel_size
        if cell.is_search:
            parts = TINY_PARTS if setting.is_tiny else PARTS
            if setting.allow_code_execution:
                running["allow_code_execution"] = True
            places = {"tasks": self.tasks, "results": str(self.result_files[0])}
            return [Command(SEARCH, {**merge, **parts, **options, **running, **places})]
        if setting.is_tiny and (cell.is_alone or cell.script == MAIN_JOB) and "end_index" not in options:
            running["end_index"] = TINY_EXAMPLES
        if cell.script == MAIN_JOB:
            return [Command(MAIN_JOB, {**merge, **options, **running, **output_dir})]
        if setting.is_tiny and cell.is_attack:
            running |= TINY_ATTACK
            if "bertattack" in cell.attacks:
                running |= {"mask_lm": TINY_BERT, "sentence_encoder": TINY_BERT}
        options = {name: self.model if value == cells.MERGED else value for name, value in options.items()}
        run = Command(cell.script, {**options, **running, **output_dir})
        return [run] if cell.is_alone else [Command(MAIN_JOB, {**merge, "merge_only": True, **output_dir}), run]

    @property
    def _merge_options(self) -> dict[str, Any]:
        """The options of the merge, with the models of the setting."""
        if self.setting.models is None:
            return self.cell.merge
        if not self.setting.is_tiny:
            return {**self.cell.merge, "models_dir": self.setting.models}
        folders = {PRETRAINED: TINY_ZOO / "base", **{role: TINY_ZOO / role for role in self.roles}}
        if self.cell.is_attack:
            folders[self.roles[0]] = TINY_ZOO / "classify"
        return {**self.cell.merge, **{f"{role}_model": str(folder) for role, folder in folders.items()}}

    def holds_other_merge(self) -> bool:
        """Whether the output folder has the record of another merge than the cell's commands make, with or without its
        weights."""
        record = cells.merge_record_path(self.places)
        if record is None:
            return False
        options = cells.merge_namespace(self._merge_options)
        roles = chosen_roles(options)
        request = request_of_folders(options, roles, merge_parameters(options, roles))
        return not is_same_merge(read_record(record), request)

    @property
    def result_files(self) -> list[Path]:
        """The cell's result files: scores, the results of attacks, or those of a search."""
        if self.cell.is_search:
            return [cells.search_results(self.places, self.cell, self.setting.allow_code_execution)]
        attacks = [self.places.adversarial_result(self.cell.tasks[0], attack) for attack in self.cell.attacks]
        return attacks or [self.places.scores()]

    def results(self) -> dict[str, dict[str, Any]]:
        """The options of each readable result, by attack or else by task; of a search, how many questions tested it."""
        if self.cell.is_search:
            return {task: {"examples": number} for task, number in tested_examples(self.result_files[0]).items()}
        files = [_read_result(path) for path in self.result_files]
        contents = dict(zip(self.cell.attacks, files, strict=True)) if self.cell.attacks else files[0]
        names = self.cell.attacks or self.cell.tasks
        results = {name: contents[name] for name in names if isinstance(contents.get(name), dict) and contents[name]}
        return {name: _effective(result.get("options") or {}) for name, result in results.items()}

    def input_files(self) -> dict[str, Sequence[Path]]:
        """The files of each model and set that are on this machine."""
        folders = _model_folders(cells.merge_namespace(self._merge_options))
        inputs = {f"{role} model": list_input_files(folder) for role, folder in folders.items() if folder is not None}
        data_dir = None if self.setting.sets is None else ROOT / self.setting.sets
        for task in self.cell.tasks:
            inputs[f"{task} set"] = _set_files(task, data_dir)
        options = self.commands[-1].options
        for name in ATTACK_MODELS:
            if name in options:
                path = ROOT / options[name]
                inputs[f"--{name}"] = [file for file in sorted([path, *path.rglob("*")]) if file.is_file()]
        return {name: files for name, files in inputs.items() if files}

    def tokenizer_folders(self) -> set[Path]:
        """The folders on this machine whose tokenizers make the cell's prompts."""
        folders = _model_folders(cells.merge_namespace(self._merge_options))
        roles = {role_of_task(task, self.roles) for task in self.tasks}
        pairs = [(folders[role], folders[PRETRAINED]) for role in roles if folders[role] is not None]
        return {check_tokenizer([folder for folder in pair if folder is not None]) for pair in pairs}

    def hash_inputs(self) -> dict[str, str]:
        return {name: files_hash(files) for name, files in self.input_files().items()}

    @property
    def state(self) -> CellState | None:
        """The cell's record; None if it is missing or unreadable."""
        try:
            return cells.read_state(cells.state_path(self.setting.results_dir, self.cell))
        except UserError:
            return None

    def is_done(self) -> bool:
        """Whether the cell was run with these options, on the models and sets as they are now, and all its results
        still exist. The number of GPUs does not matter. Models and sets that are no longer on this machine count as
        unchanged."""
        setting = self.setting
        if self.cell.is_search and not setting.allow_code_execution:
            with_programs = replace(self, setting=replace(setting, allow_code_execution=True))
            if with_programs.is_done():
                return True
        state, results = self.state, self.results()
        return (
            state is not None
            and state.status == cells.DONE
            and self.has_same_commands(state)
            and results.keys() == set(self.cell.attacks or self.tasks)
            and state.result_options in (None, results)
            and not self.changed_inputs(state)
        )

    def has_same_commands(self, state: CellState) -> bool:
        """Whether the cell's last success used its present commands."""
        return state.runs in ([command.data for command in self.commands], [command.text for command in self.commands])

    def changed_inputs(self, state: CellState) -> list[str]:
        """The inputs that changed since the cell was run; none if an earlier version ran it and kept no hashes."""
        if state.hashes is None:
            return []
        try:
            now = self.hash_inputs()
        except (UserError, OSError):  # reported when the cell runs
            return ["model"]
        return [name for name, digest in now.items() if state.hashes.get(name) != digest]

    def record(self, status: str, **about: Any) -> None:
        """Record the cell's status. Existing results keep the commands that made them until they are replaced."""
        before = self.state
        commands = [command.text for command in self.commands]
        if status != cells.DONE and self.results():
            commands = [] if before is None else before.commands
        kept = {} if before is None else {name: getattr(before, name) for name in ("runs", "hashes", "result_options")}
        root, tasks, name = str(self.places.root), self.places.tasks, self.places.name
        state = CellState(self.cell, commands, status, root, tasks, name, **{**kept, **about})
        cells.write_state(self.setting.results_dir, state)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, "")
    except UserError:
        return {}


def _set_files(task: str, data_dir: Path | None) -> Sequence[Path]:
    if task in TASKS:
        return TASKS[task].data_set.files_in(data_dir)
    attacked = None if data_dir is None else data_dir / f"{task}_dev.tsv"
    return [] if attacked is None or not attacked.is_file() else [attacked]


def _model_folders(options: argparse.Namespace) -> dict[str, Path | None]:
    """The folder of each model of a merge; None if it is not on this machine."""
    names = {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in chosen_roles(options)}}
    folders = {}
    for role, name in names.items():
        given, paper_folder = getattr(options, f"{role}_model"), ROOT / (options.models_dir or "") / name
        if given is None and paper_folder.is_dir():
            folders[role] = paper_folder
        else:
            folders[role] = local_model_folder(HUB_IDS[name] if given is None else given, ROOT)
    return folders
