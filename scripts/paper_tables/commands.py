"""From a cell to the commands that fill it, on the models and the machine at hand, and the files that they leave."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import chosen_roles, merge_parameters, request_of_folders
from model_merging_methods.merge_parameters import run_name
from model_merging_methods.merge_record import is_same_merge, read_record, tasks_name
from scripts.paper_tables.cell import ATTACKS, MAIN_JOB, MERGED, Cell
from scripts.paper_tables.stored_results import merge_record_path
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.output_places import OutputPlaces

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = "tiny"
TINY_ZOO = Path("scripts/tiny_zoo")
# Of the tiny models none but `classify` answers the prompts that are attacked: there it takes the first model's place,
# and its merges a folder of their own.
CLASSIFIER_RESULTS = "tiny_classifier"
TINY_EXAMPLES = 30
TINY_ATTACK = ("--num_samples", "20", "--query_budget", "40")
TINY_BERT = str(TINY_ZOO / "masked")


@dataclass(frozen=True)
class Setting:
    """What a run of tables is run with. `models`: `tiny`, a folder that holds the paper's models, or None for the
    working folder and the hub."""

    results_dir: Path
    models: str | None
    data_dir: Path | None
    backend: str
    tensor_parallel_size: int | None

    @property
    def is_tiny(self) -> bool:
        return self.models == TINY


def data_dir_of(setting: Setting) -> Path | None:
    """Where the sets' files are looked for, from the project's root; the tiny models have sets of their own."""
    return TINY_ZOO / "data" if setting.is_tiny and setting.data_dir is None else setting.data_dir


def output_dir(cell: Cell, setting: Setting) -> Path:
    if setting.is_tiny and cell.script.startswith(ATTACKS):
        return setting.results_dir / CLASSIFIER_RESULTS
    return setting.results_dir


def merge_places(cell: Cell, setting: Setting) -> OutputPlaces:
    """Where the outputs of a cell's merge go. Raises UserError where its options make no sense."""
    options = build_parser().parse_args(list(cell.merge))
    roles = chosen_roles(options)
    name = run_name(merge_parameters(options, roles), len(roles))
    return OutputPlaces(output_dir(cell, setting), tasks_name(roles), name)


def merged_model(cell: Cell, setting: Setting) -> Path:
    """The merged folder that is asked: the one with the first model's tokenizer."""
    return merge_places(cell, setting).merged_model(_roles(cell)[0])


def cell_commands(cell: Cell, setting: Setting) -> list[list[str]]:
    """The commands of a cell as words for the project's root, without the interpreter; a merge comes before what is
    asked of it."""
    merge = [MAIN_JOB, *cell.merge, *_model_words(cell, setting)]
    root = str(output_dir(cell, setting))
    if cell.script == MAIN_JOB:
        return [[*merge, *_run_words(setting), *_examples(cell, setting), "--output_dir", root]]
    words = [str(merged_model(cell, setting)) if word == MERGED else word for word in cell.words]
    return [
        [*merge, "--merge_only", "--output_dir", root],
        [*words, *_run_words(setting), *_tiny_attack(cell, setting), "--output_dir", root],
    ]


def holds_other_merge(cell: Cell, setting: Setting) -> bool:
    """Whether the merge on record in a cell's place is another than its commands would make. The weights may be deleted
    by then."""
    record = merge_record_path(merge_places(cell, setting))
    if record is None:
        return False
    options = build_parser().parse_args([*cell.merge, *_model_words(cell, setting)])
    roles = chosen_roles(options)
    request = request_of_folders(options, roles, merge_parameters(options, roles))
    return not is_same_merge(read_record(record), request)


def results_there(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Of a cell's attacks, or else of its tasks, the results that are there and can be read."""
    places = merge_places(cell, setting)
    if not cell.attacks:
        scores = _read_result(places.scores())
        return {task: scores[task] for task in cell.tasks if task in scores}
    results = {attack: _read_result(places.adversarial_result(cell.tasks[0], attack)) for attack in cell.attacks}
    return {attack: result for attack, result in results.items() if result}


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, "")
    except UserError:
        return {}


def result_files(cell: Cell, setting: Setting) -> list[Path]:
    """The files that a finished cell has left: scores, or the results of attacks."""
    places = merge_places(cell, setting)
    results = [places.adversarial_result(cell.tasks[0], attack) for attack in cell.attacks]
    return results or [places.scores()]


def shell_words(words: Sequence[str]) -> list[str]:
    """A command as it is typed at the project's root."""
    return ["python", *words]


def interpreter_words(words: Sequence[str]) -> list[str]:
    """The same command for this interpreter."""
    return [sys.executable, *words]


def _roles(cell: Cell) -> list[str]:
    return chosen_roles(build_parser().parse_args(list(cell.merge)))


def _model_words(cell: Cell, setting: Setting) -> list[str]:
    if setting.models is None:
        return []
    if not setting.is_tiny:
        return ["--models_dir", setting.models]
    roles = _roles(cell)
    folders = {role: TINY_ZOO / role for role in roles}
    if cell.script.startswith(ATTACKS):
        folders[roles[0]] = TINY_ZOO / "classify"
    words = ["--pretrained_model", str(TINY_ZOO / "base")]
    for role, folder in folders.items():
        words += [f"--{role}_model", str(folder)]
    return words


def _run_words(setting: Setting) -> list[str]:
    words = []
    data_dir = data_dir_of(setting)
    if data_dir is not None:
        words += ["--data_dir", str(data_dir)]
    words += ["--backend", setting.backend]
    if setting.tensor_parallel_size is not None:
        words += ["--tensor_parallel_size", str(setting.tensor_parallel_size)]
    return words


def _tiny_attack(cell: Cell, setting: Setting) -> list[str]:
    """Of the tiny models fewer samples and prompts, and a tiny model for bertattack to work with."""
    if not (setting.is_tiny and cell.script.startswith(ATTACKS)):
        return []
    bert = ["--mask_lm", TINY_BERT, "--sentence_encoder", TINY_BERT] if "bertattack" in cell.attacks else []
    return [*TINY_ATTACK, *bert]


def _examples(cell: Cell, setting: Setting) -> list[str]:
    """Of the tiny models fewer examples, unless the cell says how many itself."""
    return ["--end_index", str(TINY_EXAMPLES)] if setting.is_tiny and "--end_index" not in cell.merge else []
