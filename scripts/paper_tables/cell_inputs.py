"""The models and sets that a cell's results depend on, known by the hashes of their contents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from inference_llms.tasks import TASKS
from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import chosen_roles
from model_merging_methods.merge_record import PRETRAINED, list_input_files
from scripts.paper_tables.cell import Cell, option_values
from scripts.paper_tables.commands import ROOT, Setting, cell_commands, data_dir_of
from utils.content_hashes import files_hash
from utils.model_folders import FINETUNED_MODELS, HUB_IDS, PRETRAINED_MODEL, local_model_folder

PARTS_OF_ATTACKS = ("--mask_lm", "--sentence_encoder", "--word_vectors")


def input_files(cell: Cell, setting: Setting) -> dict[str, list[Path]]:
    """The files of each input that is on this machine."""
    commands = cell_commands(cell, setting)
    folders = _model_folders(commands[0])
    found = {f"{name} model": list_input_files(folder) for name, folder in folders.items() if folder is not None}
    data_dir = data_dir_of(setting)
    for task in cell.tasks:
        found[f"{task} set"] = _set_files(task, None if data_dir is None else ROOT / data_dir)
    for option in PARTS_OF_ATTACKS:
        for value in option_values(option, commands[-1]):
            found[option] = _files_at(ROOT / value)
    return {name: files for name, files in found.items() if files}


def _set_files(task: str, data_dir: Path | None) -> list[Path]:
    """The files in a data folder of a task's or of an attacked set."""
    if task in TASKS:
        return TASKS[task].data_set.files_in(data_dir)
    attacked = None if data_dir is None else data_dir / f"{task}_dev.tsv"
    return [] if attacked is None or not attacked.is_file() else [attacked]


def hash_inputs(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    return {name: files_hash(of_input) for name, of_input in files.items()}


def _model_folders(command: Sequence[str]) -> dict[str, Path | None]:
    """Of a command of the main job the folder of each model; None where it is not on this machine."""
    options, _ = build_parser().parse_known_args(list(command[1:]))
    names = {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in chosen_roles(options)}}
    folders = {}
    for role, name in names.items():
        given, of_paper = getattr(options, f"{role}_model"), ROOT / (options.models_dir or "") / name
        if given is not None:
            folders[role] = local_model_folder(given, ROOT)
        else:
            folders[role] = of_paper if of_paper.is_dir() else local_model_folder(HUB_IDS[name], ROOT)
    return folders


def _files_at(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
