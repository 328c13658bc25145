"""The cells of the paper's tables as data, and the record of each cell."""

import argparse
import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from inference_llms.command_line import add_inference_options
from inference_llms.tasks import TASKS_OF_ROLE
from model_merging_methods.command_line import add_merge_options, chosen_roles, merge_parameters
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import RECORD_FILE
from model_merging_methods.methods import METHODS as ALL_METHODS
from scripts.paper_tables.tuning import BASELINE, left_out, number_of_models, tuned_option
from utils.command_line import OneLineParser, options_on_record
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.output_places import OutputPlaces
from utils.whole_files import write_json

MAIN_JOB = "merge_llms_instruct_math_code.py"
LIVEBENCH = "ood_robust_inference.py"
SEARCH = "scripts/search_mixup.py"
ALONE = "inference_llms"  # a module: runs a fine-tune that is not merged
ATTACK_SCRIPTS = ("promptbench/sst2.py", "promptbench/cola.py")
MERGED = "MERGED"  # in a cell's options: the folder of its merge, or of the fine-tune that runs alone

STATES = "paper_cells"  # below the results folder
# On the tiny models, attacked merges have a separate folder, and the tiny classifier is their first model: only it was
# trained on the attacked prompts.
CLASSIFIER_RESULTS = "tiny_classifier"
PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"
REMEDY = "remove it and rerun its script"


@dataclass(frozen=True)
class Cell:
    """One call of an entry script, whose results are in `tables`.

    `merge`: the main job's options that make the model. `script` and `options`: the call itself; the main job merges
    and runs the tasks in one call, and so does a search, whose options replace those of `merge`. For a fine-tune alone,
    `merge` only names it.
    """

    tables: tuple[str, ...]
    merge: dict[str, Any]
    script: str = MAIN_JOB
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A readable and unique name."""
        words = [*option_words(self.merge), self.script, *option_words(self.options)]
        shown = [word.removeprefix("--") for word in words if word not in (MAIN_JOB, MERGED)]
        slug = re.sub(r"[^\w.]+", "_", " ".join(shown)).strip("_")
        return f"{slug[:120]}_{hashlib.sha256(shlex.join(words).encode()).hexdigest()[:8]}"

    @property
    def is_attack(self) -> bool:
        return self.script.startswith("promptbench/")

    @property
    def is_search(self) -> bool:
        return self.script == SEARCH

    @property
    def is_alone(self) -> bool:
        return self.script == ALONE

    @property
    def tasks(self) -> list[str]:
        """The tasks, or the attacked set, that the call runs."""
        if self.is_attack:
            return [Path(self.script).stem]
        if self.script == LIVEBENCH:
            return [self.options["evaluate_task"]]
        roles = [role for role in TASKS_OF_ROLE if f"merge_{role}" in self.merge]
        return self.options.get("tasks") or [task for role in roles for task in TASKS_OF_ROLE[role]]

    @property
    def attacks(self) -> list[str]:
        """The attacks on the set's prompt."""
        return self.options["attack_method"] if self.is_attack else []


# The merges of the paper.
PAIRS = (("instruct", "math"), ("instruct", "code"), ("math", "code"))
THREE = ("instruct", "math", "code")
METHODS = ("average_merging", "task_arithmetic", "ties_merging")
M3 = {"mixup": True, "alpha": 0.5}
DARE = {"merging_method_name": "mask_merging", "use_weight_rescale": True, "weight_mask_rate": 0.2}


def merge_options(models: Sequence[str], **options: Any) -> dict[str, Any]:
    return {**{f"merge_{model}": True for model in models}, **options}


def with_and_without_m3(models: Sequence[str], method: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A merge without M3, and its draws with M3."""
    plain = merge_options(models, merging_method_name=method)
    return [plain, *({**plain, **M3, "seed": seed} for seed in seeds)]


def finetune_cells(table: str, roles: Sequence[str]) -> Iterator[Cell]:
    """Each fine-tune alone on its own tasks, for a merge's share of these scores."""
    for role in roles:
        options = {"load_model_path": MERGED, "tasks": list(TASKS_OF_ROLE[role])}
        yield Cell((table,), merge_options([role]), ALONE, options)


def performance_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """AlpacaEval, GSM8K, MATH, HumanEval, MBPP: pairs and all three, merged by each method."""
    for models in (*PAIRS, THREE):
        for method in METHODS:
            for merge in with_and_without_m3(models, method, seeds):
                yield Cell(("performance",), merge)
    yield from finetune_cells("performance", THREE)


def dare_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """LM & Code, the pair of the paper's figure: neither, DARE, M3, both."""
    models = ("instruct", "code")
    for method in METHODS:
        plain, *drawn = with_and_without_m3(models, method, seeds)
        yield Cell(("dare",), plain)
        for seed, with_m3 in zip(seeds, drawn, strict=True):
            dare = merge_options(models, **DARE, mask_apply_method=method)
            yield Cell(("dare",), {**dare, "seed": seed})
            yield Cell(("dare",), with_m3)
            yield Cell(("dare",), {**dare, **M3, "seed": seed})
    yield from finetune_cells("dare", models)


def ood_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """LiveBench: each pair on the questions that neither of its models was tuned for.

    The published figure does not say which method it shows; these are averages."""
    sets = (("instruction_following", "math", "code"), ("coding", "instruct", "math"), ("typos", "instruct", "code"))
    by_set = [with_and_without_m3(models, "average_merging", seeds) for _, *models in sets]
    for merges in zip(*by_set, strict=True):
        for (task, *_), merge in zip(sets, merges, strict=True):
            options = {"load_model_path": MERGED, "evaluate_task": task, "livebench_release": "2024-11-25"}
            yield Cell(("ood",), merge, LIVEBENCH, options)


def adversarial_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """Attacks on the prompts of sst2 and cola: each pair.

    The published figure does not say which method, attack or set its bars show; these are averages."""
    for models in PAIRS:
        for merge in with_and_without_m3(models, "average_merging", seeds):
            for script in ATTACK_SCRIPTS:
                for attacks in (["deepwordbug", "stresstest"], ["bertattack"]):
                    yield Cell(("adversarial",), merge, script, {"model_path": MERGED, "attack_method": attacks})


def alpha_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """M3 at several α: LM & Math, averaged. α sets how far λ strays from 0.5; this is not a search for the best λ."""
    models = ("instruct", "math")
    plain = merge_options(models, merging_method_name="average_merging")
    yield Cell(("alpha",), plain)
    for alpha in (0.2, 0.5, 1, 2, 5):
        for seed in seeds:
            yield Cell(("alpha",), {**plain, "mixup": True, "alpha": alpha, "seed": seed})
    yield from finetune_cells("alpha", models)


def methods_cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """Every method, with one option tuned on a validation part: all three models, or LM & Math if it merges only pairs.

    Both groups have the baseline. Nothing is drawn, so there is one cell for all seeds."""
    for name, method in ALL_METHODS.items():
        if name in left_out():
            continue
        numbers = (3, 2) if name == BASELINE else (number_of_models(method),)
        option, values = tuned_option(method) or (None, ())
        tuned = {option: list(values)} if option else {}
        required = {option: values[0]} if option and method.options[option].default is None else {}
        for number in numbers:
            merge = merge_options(THREE[:number], merging_method_name=name, **required)
            yield Cell(("methods",), merge, SEARCH, {"without_mixup": True, **tuned})


# Add an entry for a custom table: `bash scripts/paper/run.sh NAME` runs it.
TABLES: dict[str, Callable[[Sequence[int]], Iterator[Cell]]] = {
    "performance": performance_cells,
    "dare": dare_cells,
    "ood": ood_cells,
    "adversarial": adversarial_cells,
    "alpha": alpha_cells,
    "methods": methods_cells,
}


def cells_of_tables(names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    if not names or not set(names) <= TABLES.keys():
        raise UserError(f"{' '.join(names) or 'no table'}: name one or more of {', '.join(TABLES)}")
    return without_copies(cell for name in names for cell in TABLES[name](seeds))


def without_copies(cells: Iterable[Cell]) -> list[Cell]:
    """The cells without duplicates; a cell that several tables share names them all."""
    unique: dict[str, Cell] = {}
    for cell in cells:
        known = unique.get(cell.name, cell)
        unique[cell.name] = replace(known, tables=tuple(dict.fromkeys((*known.tables, *cell.tables))))
    return list(unique.values())


def read_cells(path: Path) -> list[Cell]:
    """The cells of a job array."""
    remedy = "write it again with --slurm"
    cells = read_json_object(path, remedy).get("cells")
    check_shape(str(path), cells, list[Cell], remedy)
    return without_copies(map(_cell_of_json, cells))


def _cell_of_json(fields_of_cell: Mapping[str, Any]) -> Cell:
    return Cell(**{**fields_of_cell, "tables": tuple(fields_of_cell["tables"])})


def merge_record_path(places: OutputPlaces) -> Path | None:
    """The record of a merge: beside its weights, else the copy that outlives them."""
    beside = sorted((places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}/{RECORD_FILE}"))
    return next((path for path in (*beside, places.kept_record()) if path.is_file()), None)


def search_results(places: OutputPlaces, cell: Cell, with_programs: bool) -> Path:
    """The results file of a search, with tasks whose answers are programs or without."""
    ending = ".sqlite" if with_programs else "_without_programs.sqlite"
    return places.mixup_search().with_name(f"{cell.name}{ending}")


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def merge_namespace(options: Mapping[str, Any]) -> argparse.Namespace:
    """A merge's options as the main job's parser gives them. Raises UserError if one is wrong."""
    return _merge_parser().parse_args(option_words(options))


def merge_of_options(options: Mapping[str, Any]) -> tuple[list[str], MergeParameters]:
    """The roles and the parameters of a merge."""
    namespace = merge_namespace(options)
    roles = chosen_roles(namespace)
    return roles, merge_parameters(namespace, roles)


def _merge_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    add_merge_options(parser)
    return parser


@dataclass(frozen=True)
class CellState:
    """The record of a cell: a file of `paper_cells`.

    `commands`: the cell's commands as text, for people. `root`, `tasks_name`, `name`: the places of its outputs.
    `started` in seconds since 1970. `results`: its result files. The last three fields describe the last success:
    `runs`, the commands as data; `hashes` of models and sets by name; `result_options`, the options in each result's
    record, by task or attack. Earlier versions recorded `runs` as text, and not always the two after it.
    """

    cell: Cell
    commands: list[str]
    status: str
    root: str
    tasks_name: str
    name: str
    reason: str | None = None
    started: float | None = None
    seconds: float | None = None
    results: list[str] | None = None
    runs: list[dict[str, Any]] | list[str] | None = None
    hashes: dict[str, str] | None = None
    result_options: dict[str, Any] | None = None

    def places(self, results_dir: Path) -> OutputPlaces:
        """The places of its outputs, in a results folder that may have moved."""
        if self.cell.is_attack and Path(self.root).name == CLASSIFIER_RESULTS:
            results_dir = results_dir / CLASSIFIER_RESULTS
        return OutputPlaces(results_dir, self.tasks_name, self.name)


def state_path(results_dir: Path, cell: Cell) -> Path:
    return results_dir / STATES / f"{cell.name}.json"


def read_state(path: Path) -> CellState:
    """Read a state. Raises UserError if the file is damaged."""
    value = read_json_object(path, REMEDY)
    if isinstance(value.get("cell"), str):
        value = _of_earlier_version(path, value)
    check_shape(str(path), value, CellState, REMEDY)
    known = {field.name: value[field.name] for field in fields(CellState) if field.name in value}
    state = CellState(**{**known, "cell": _cell_of_json(value["cell"])})
    try:
        state.cell.is_alone or merge_of_options(state.cell.merge)
        state.cell.tasks, state.cell.attacks, state.places(path.parent)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a complete record of a cell; {REMEDY}") from error
    return state


def write_state(results_dir: Path, state: CellState) -> None:
    write_json(state_path(results_dir, state.cell), asdict(state))


def _of_earlier_version(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """The present fields of a state whose cell is text: merge, `--`, script and options."""
    try:
        words = shlex.split(value["cell"])
        script = words[words.index("--") + 1]
        known = options_of_text(value["cell"].replace(" -- ", " "))
    except (UserError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a complete record of a cell; {REMEDY}") from error
    of_merge = vars(_merge_parser().parse_args([]))
    # In the order of the text, and 1.0 as 1: both are part of the cell's name.
    named = [word.removeprefix("--") for word in words if word.removeprefix("--") in known]
    options = {name: _short(known[name]) for name in named}
    merge = {name: options.pop(name) for name in named if name in of_merge}
    inputs = value.get("inputs") or {}
    return {
        **value,
        "cell": {"tables": value.get("tables", []), "merge": merge, "script": script, "options": options},
        "runs": inputs.get("commands", value.get("commands")),
        "hashes": inputs.get("hashes"),
    }


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def options_of_text(command: str) -> dict[str, Any]:
    """The options of an entry script's command, which earlier versions recorded only as text. Raises UserError for
    other commands."""
    parser = _merge_parser()
    add_inference_options(parser)
    for name, number in (("tasks", "+"), ("attack_method", "+"), ("evaluate_task", None), ("livebench_release", None)):
        parser.add_argument(f"--{name}", nargs=number)
    given, defaults = parser.parse_known_args(shlex.split(command))[0], vars(parser.parse_args([]))
    return options_on_record(argparse.Namespace(**{k: v for k, v in vars(given).items() if v != defaults[k]}))
