"""What the record of a merge, its words or its log tell of it."""

import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inference_llms.tasks import TASKS_OF_ROLE
from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import chosen_roles, merge_parameters
from model_merging_methods.merge_parameters import Mask, Mixup
from model_merging_methods.merge_record import PRETRAINED, RECORD_FILE
from model_merging_methods.model_card import model_name
from scripts.paper_tables.names import METHODS, models_name
from scripts.paper_tables.stored_results import merge_record_path, split_at
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.output_places import SINGLE_MODEL, OutputPlaces


def merges_on_record(results_dir: Path) -> dict[tuple[Path, str], OutputPlaces]:
    """The places of every merge whose record lies below a results' folder, by their root and the merge's name in one
    word: records that outlived the weights, and those beside weights."""
    found = []
    for path in results_dir.rglob("merge_records/*/**/*.json"):
        root, (tasks, *name) = split_at(results_dir, path, "merge_records")
        found.append(OutputPlaces(root, tasks, "/".join(name).removesuffix(".json")))
    for path in results_dir.rglob(f"save_merge_models/*/*/**/{RECORD_FILE}"):
        root, (tasks, _, *name, _) = split_at(results_dir, path, "save_merge_models")
        if name and not path.parent.name.startswith("."):  # hidden: a merge that was killed
            found.append(OutputPlaces(root, tasks, "/".join(name)))
    return {(places.root, places.model): places for places in found}


def about_merge(places: OutputPlaces) -> dict[str, Any]:
    """What the record of a merge says of it; little where there is none. Where it is not whole, its path, and no
    fingerprint."""
    tasks, name = places.tasks, places.name
    record_path = merge_record_path(places)
    about: dict[str, Any] = {
        "models": models_name(tasks) if tasks != SINGLE_MODEL else name,
        "inputs": "",
        "method": "",
        "variant": "" if tasks == SINGLE_MODEL else name,
        "mixup": False,
        "dare": False,
        "alpha": None,
        "seed": None,
        "ratios": "",
        "merge_record": "",
        "fingerprint": "",
    }
    if record_path is None:
        return about
    try:
        record = read_json_object(record_path, "")
        return {**about, **_about_parameters(record["parameters"]), **_record_fields(record_path, record)}
    except (UserError, KeyError, TypeError, AttributeError):
        return {**about, "merge_record": str(record_path)}


def _record_fields(path: Path, record: Mapping[str, Any]) -> dict[str, str]:
    folders = {entry["role"]: Path(entry["folder"]) for entry in record["inputs"] if entry["role"] != PRETRAINED}
    return {
        "merge_record": str(path),
        "fingerprint": record["fingerprint"],
        "inputs": " + ".join(map(model_name, folders.values())),
    }


def _about_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A merge's parameters as the paper's tables tell them apart, the rest as its variant."""
    mask, mixup = parameters["mask"], parameters["mixup"]
    mask = None if mask is None else Mask(**mask)
    mixup = None if mixup is None else Mixup(tuple(mixup["weights"]), mixup["alpha"])
    dare = mask is not None and mask == Mask(mask.weight_mask_rate, True)
    drawn = (mixup is not None and mixup.is_drawn) or (mask is not None and mask.mask_strategy == "random")
    variant = []
    if parameters["scaling_coefficient"] != 1.0:
        variant.append(f"s = {parameters['scaling_coefficient']}")
    if parameters["param_value_mask_rate"] != 0.5:
        variant.append(f"r = {parameters['param_value_mask_rate']}")
    if dare and mask.weight_mask_rate != Mask().weight_mask_rate:
        variant.append(f"p = {mask.weight_mask_rate}")
    if mask is not None and not dare:
        variant.append(f"mask {mask.mask_strategy} {mask.weight_format} {mask.weight_mask_rate}")
    if mixup is not None and mixup.alpha is None:
        variant.append("λ given")
    if parameters["dtype"] is not None:
        variant.append(parameters["dtype"])
    if parameters["exclude_param_names_regex"]:
        variant.append(f"without {' '.join(parameters['exclude_param_names_regex'])}")
    return {
        "method": METHODS.get(parameters["method"], parameters["method"]),
        "variant": ", ".join(variant),
        "mixup": mixup is not None,
        "dare": dare,
        "alpha": None if mixup is None else mixup.alpha,
        "seed": parameters["seed"] if drawn else None,
        "ratios": "" if mixup is None else " ".join(str(weight) for weight in mixup.weights),
    }


def about_words(merge: Sequence[str]) -> dict[str, Any]:
    """The same of a merge that was never made, from the words of its cell."""
    options = build_parser().parse_args(list(merge))
    parameters = merge_parameters(options, chosen_roles(options))
    return _about_parameters(asdict(parameters))


def logged_commands(places: OutputPlaces, task: str) -> tuple[str, str]:
    """The last logged command that asked a merge `task`, and the last that made the merge; empty where there is
    none."""
    asked = made = ""
    for log in sorted((places.root / "save_merge_llm_logs" / places.tasks / places.name).glob("*.log")):
        command = _command_of_log(log)
        options = _options_of_command(command)
        if options is None:
            continue
        if options.backend != "replay":
            made = command
        tasks = options.tasks or [name for role in places.tasks.split("_") for name in TASKS_OF_ROLE.get(role, ())]
        if task in tasks and not options.merge_only:
            asked = command
    return asked, made


def _command_of_log(path: Path) -> str:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, mark, command = line.partition("command: ")
        if mark:
            return command
    return ""


def _options_of_command(command: str) -> Namespace | None:
    """The options of a command of the main job; None where it is none that this version knows."""
    try:
        return build_parser().parse_args(shlex.split(command)[2:]) if command else None
    except (UserError, ValueError):
        return None
