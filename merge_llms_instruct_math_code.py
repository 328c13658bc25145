"""Merge fine-tunes of one backbone, run the merged model on its tasks, score, and record all of it."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from inference_llms.command_line import (
    add_inference_options,
    add_tasks_option,
    check_engine,
    check_inference_options,
    check_tasks_option,
    model_source,
    whole_number,
)
from inference_llms.folder_checks import check_tokenizer
from inference_llms.run_tasks import (
    ModelTasks,
    ReplaySource,
    TaskExamples,
    load_task_examples,
    run_tasks,
    score_lines,
)
from inference_llms.tasks import TASKS_OF_ROLE
from model_merging_methods.merge_parameters import (
    DEVICES,
    DTYPE_NAMES,
    MASK_MERGING,
    MASK_STRATEGIES,
    METHOD_NAMES,
    WEIGHT_FORMATS,
    Mask,
    MergeParameters,
    Mixup,
    run_name,
)
from model_merging_methods.merge_record import PRETRAINED, MergeRequest, request_from_record, tasks_name
from model_merging_methods.merging_methods import MERGING_METHODS
from model_merging_methods.mixup import draw_interpolation_weights, given_interpolation_weights
from utils.command_line import OneLineParser
from utils.custom_code import check_runs_without_code
from utils.errors import UserError, run_command_line
from utils.findings import Findings
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL, find_model_folder, paper_model_folder
from utils.output_places import OutputPlaces
from utils.run_log import log_time, logged_run
from utils.whole_files import remove_folder

log = logging.getLogger(__name__)

# Options that shape the merge. Each is None until given, so that one with no use can be told from a default.
DEFAULTS = {
    "merging_method_name": MASK_MERGING,
    "scaling_coefficient": 1.0,
    "param_value_mask_rate": 0.5,
    "mask_apply_method": "average_merging",
    "weight_mask_rate": 0.2,
    "weight_format": "delta_weight",
    "mask_strategy": "random",
    "alpha": 0.5,
    "seed": 0,
}


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)

    models = add_model_options(parser)
    models.add_argument("--from_record", type=Path, metavar="FILE", help="make the merge of a merge_record.json again")

    merging = add_method_options(parser)
    merging.add_argument("--scaling_coefficient", type=float, help=_default("scaling_coefficient"))
    merging.add_argument(
        "--param_value_mask_rate", type=float, help=_default("param_value_mask_rate", "trim rate of TIES")
    )
    merging.add_argument("--weight_mask_rate", type=float, help=_default("weight_mask_rate", "drop rate of the mask"))
    merging.add_argument("--mixup", action="store_true", help="M3: interpolate at a ratio ~ Beta(alpha, alpha)")
    merging.add_argument("--alpha", type=float, help=_default("alpha"))
    merging.add_argument(
        "--mixup_lambda",
        type=float,
        nargs="+",
        metavar="X",
        help="M3 at this ratio (of the first model; or one for each, summing to 1)",
    )
    merging.add_argument("--device", choices=DEVICES, help="what does the arithmetic (default: cpu)")

    running = parser.add_argument_group("running")
    running.add_argument("--check", action="store_true", help="check the inputs, print what is found, and stop")
    running.add_argument("--merge_only", action="store_true", help="stop after saving the merged model")
    running.add_argument("--delete_merged_model", action="store_true", help="delete the merged model once it is scored")
    add_tasks_option(running)
    add_inference_options(running)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that say which models are merged; returns their group."""
    models = parser.add_argument_group("models")
    for role, name in FINETUNED_MODELS.items():
        models.add_argument(f"--merge_{role}", action="store_true", help=f"merge the {role} model ({name})")
    models.add_argument("--models_dir", type=Path, help="where models lie under the paper's names")
    for role in (PRETRAINED, *FINETUNED_MODELS):
        models.add_argument(f"--{role}_model", metavar="PATH_OR_HUB_ID", help=f"another {role} model")
    return models


def add_method_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that shape a merge, but for its numbers; returns their group."""
    merging = parser.add_argument_group("merging")
    merging.add_argument(
        "--merging_method_name",
        type=_underscored,
        choices=METHOD_NAMES,
        help=_default("merging_method_name", "hyphens are taken too"),
    )
    merging.add_argument(
        "--mask_apply_method",
        type=_underscored,
        choices=tuple(MERGING_METHODS),
        help=_default("mask_apply_method", "what merges the masked models"),
    )
    merging.add_argument("--use_weight_rescale", action="store_true", help="divide what the mask leaves by 1 - rate")
    merging.add_argument("--weight_format", choices=WEIGHT_FORMATS, help=_default("weight_format", "what is masked"))
    merging.add_argument("--mask_strategy", choices=MASK_STRATEGIES, help=_default("mask_strategy"))
    merging.add_argument("--seed", type=whole_number, help=_default("seed", "of the drawn ratio and of random masks"))
    merging.add_argument("--dtype", choices=DTYPE_NAMES, help="of the saved weights (default: the pretrained model's)")
    merging.add_argument(
        "--exclude_param_names_regex",
        nargs="+",
        metavar="REGEX",
        help="leave parameters in whose names one of these is found as the pretrained model has them",
    )
    merging.add_argument(
        "--config_from",
        choices=(PRETRAINED, *FINETUNED_MODELS),
        help="whose config and generation config every merged folder has (default: the pretrained model's config, with "
        "the settings in which all fine-tunes agree; stop tokens and generation config of each task's own model)",
    )
    merging.add_argument(
        "--allow_unrelated", action="store_true", help="merge even models that seem to have different backbones"
    )
    return merging


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_inference_options(options)
    check_tasks_option(options)
    if options.merge_only and (options.delete_merged_model or options.backend == "replay"):
        raise UserError("--merge_only saves a model: it makes no sense with --delete_merged_model or --backend replay")
    if options.backend == "replay" and (options.device is not None or options.allow_unrelated):
        raise UserError("--device, --allow_unrelated: have no use with --backend replay, which merges nothing")
    if options.check:
        check_inputs_only(options)
        return
    with logged_run() as keep_log:
        words = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "merge_llms_instruct_math_code.py", *words])
        log.info("command: %s", command)
        merge_infer_score(options, command, keep_log)


def check_inputs_only(options: argparse.Namespace) -> None:
    """Print the findings of the checks before a merge, one a line, and exit with status 2 where one is an error."""
    if options.backend == "replay":
        raise UserError("--check has no effect with --backend replay, which merges nothing; remove one of them")
    request = requested_merge(options)
    from model_merging_methods.preflight import check_merge

    findings = check_merge(request, options.allow_unrelated, options.from_record)
    for finding in findings.found:
        print(f"{'error' if finding.is_error else 'warning'}: {finding.text}")
    if findings.errors:
        sys.exit(2)
    if not findings.found:
        print("no errors and no warnings")


def requested_merge(options: argparse.Namespace) -> MergeRequest:
    """The merge that the options ask for, of models that they name or of a record's."""
    if options.from_record is not None:
        return recorded_request(options)
    roles = chosen_roles(options)
    return request_of_folders(options, roles, merge_parameters(options, roles))


def merge_infer_score(options: argparse.Namespace, command: str, keep_log: Callable[[Path], None]) -> None:
    """The main job, typed as `command`: all that can be checked first; then merge, and complete and score each role's
    tasks with that role's folder, one engine at a time."""
    if options.from_record is not None:
        request = recorded_request(options)
        roles, parameters = list(request.finetuned), request.parameters
    else:
        roles = chosen_roles(options)
        parameters = merge_parameters(options, roles)
        request = None if options.backend == "replay" else request_of_folders(options, roles, parameters)
    places = OutputPlaces(options.output_dir, tasks_name(roles), run_name(parameters, len(roles)))
    targets = {role: places.merged_model(role) for role in roles}
    examples = load_examples_by_role(options, roles)
    announce(roles, parameters)

    if options.backend != "replay":
        if examples:
            check_engine(options)
            check_runs_without_code(request.inputs[parameters.config_from or PRETRAINED])
        for role in examples:
            check_tokenizer([request.finetuned[role], request.pretrained])
        # The processes that vLLM starts import this script; its CPU build stumbles over numba there.
        from model_merging_methods.merge_models import MergeWork, merge_models

        how = MergeWork(device=options.device or "cpu", allow_unrelated=options.allow_unrelated)
        merge_models(request, targets, overwrite=options.overwrite, made_from=options.from_record, work=how)
        keep_log(places.log(log_time()))
    work = []
    for role, task_examples in examples.items():
        if options.backend == "replay":
            source = ReplaySource(str(targets[role]), options.replay_from)
        else:
            source = model_source(options, targets[role])
        work.append(ModelTasks(task_examples, source))
    if work:
        for line in score_lines(run_tasks(work, places, options.overwrite, command)):
            log.info(line)
        log.info("scores: %s", places.scores())
    if options.backend == "replay":
        keep_log(places.log(log_time()))
    elif options.delete_merged_model:
        delete_models(targets.values())


def chosen_roles(options: argparse.Namespace) -> list[str]:
    """The merged models' roles, in model order."""
    roles = [role for role in FINETUNED_MODELS if getattr(options, f"merge_{role}")]
    if len(roles) < 2:
        raise UserError("give two or three of --merge_instruct, --merge_math, --merge_code: a merge needs two models")
    for role in FINETUNED_MODELS:
        if role not in roles and getattr(options, f"{role}_model") is not None:
            raise UserError(f"--{role}_model has no use without --merge_{role}; add that or leave it out")
    return roles


def merge_parameters(options: argparse.Namespace, roles: Sequence[str]) -> MergeParameters:
    """The merge that the options ask for. Raises UserError for values that make no sense or have no use."""

    def value(name: str):
        given = getattr(options, name)
        return DEFAULTS[name] if given is None else given

    method = value("merging_method_name")
    mask = None
    if method == MASK_MERGING:
        method = value("mask_apply_method")
        mask = Mask(
            value("weight_mask_rate"), options.use_weight_rescale, value("mask_strategy"), value("weight_format")
        )
    mixup = None
    if options.mixup_lambda is not None:
        mixup = Mixup(given_interpolation_weights(options.mixup_lambda, len(roles)))
    elif options.mixup:
        weights = draw_interpolation_weights(value("alpha"), len(roles), value("seed"))
        mixup = Mixup(weights, value("alpha"))
    parameters = MergeParameters(
        method,
        value("scaling_coefficient"),
        value("param_value_mask_rate"),
        mask,
        mixup,
        value("seed"),
        options.dtype,
        tuple(options.exclude_param_names_regex or ()),
        options.config_from,
    )
    if options.config_from not in (None, PRETRAINED, *roles):
        raise UserError(f"--config_from {options.config_from} is not merged; add --merge_{options.config_from}")
    if not parameters.uses_seed:
        if options.seed is not None:
            log.info("--seed has no use in this merge: nothing is drawn")
        parameters = replace(parameters, seed=DEFAULTS["seed"])
    parameters.check(len(roles))
    check_options_have_use(options, parameters)
    return parameters


def check_options_have_use(options: argparse.Namespace, parameters: MergeParameters) -> None:
    """Raise UserError for an option that would change nothing, unless its value is the default anyway."""
    without_use = []
    if parameters.mask is None:
        without_use += ["mask_apply_method", "weight_mask_rate", "use_weight_rescale", "weight_format", "mask_strategy"]
    if parameters.method == "average_merging":
        without_use.append("scaling_coefficient")
    if not MERGING_METHODS[parameters.method].trims:
        without_use.append("param_value_mask_rate")
    if parameters.mixup is None or parameters.mixup.alpha is None:
        without_use.append("alpha")
    for name in without_use:
        given = getattr(options, name)
        if given is not None and given is not False and given != DEFAULTS.get(name):
            raise UserError(f"--{name} {given} has no use in this merge ({parameters.method}); leave it out")


def request_of_folders(options: argparse.Namespace, roles: Sequence[str], parameters: MergeParameters) -> MergeRequest:
    """The merge of the models that the options name, by path, hub id or the paper's name."""

    def folder(role: str, name: str) -> Path:
        given = getattr(options, f"{role}_model")
        return paper_model_folder(name, options.models_dir) if given is None else find_model_folder(given)

    if options.models_dir is not None and not options.models_dir.is_dir():
        raise UserError(f"--models_dir {options.models_dir}: no such folder")
    findings, folders = Findings(), {}
    for role, name in {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in roles}}.items():
        with findings.collect():
            folders[role] = folder(role, name)
    findings.stop_at_errors()
    return MergeRequest(folders.pop(PRETRAINED), folders, parameters)


def recorded_request(options: argparse.Namespace) -> MergeRequest:
    """The merge of `--from_record`, whose models may lie elsewhere now; nothing else of it may be changed."""
    shaping = [
        *DEFAULTS,
        "mixup",
        "mixup_lambda",
        "dtype",
        "use_weight_rescale",
        "models_dir",
        "exclude_param_names_regex",
        "config_from",
    ]
    shaping += [f"merge_{role}" for role in FINETUNED_MODELS]
    for name in shaping:
        given = getattr(options, name)
        if given is not None and given is not False:
            raise UserError(f"--{name} has no use with --from_record, which holds the whole merge; leave it out")
    given = {role: getattr(options, f"{role}_model") for role in (PRETRAINED, *FINETUNED_MODELS)}
    moved = {role: find_model_folder(path) for role, path in given.items() if path is not None}
    return request_from_record(options.from_record, moved)


def load_examples_by_role(options: argparse.Namespace, roles: Sequence[str]) -> dict[str, dict[str, TaskExamples]]:
    """The tasks to run, by the merged model whose tokenizer they take; a task of a model that is not merged
    takes the first's."""
    if options.merge_only:
        return {}
    tasks = options.tasks or [task for role in roles for task in TASKS_OF_ROLE[role]]
    examples: dict[str, dict[str, TaskExamples]] = {}
    for role in roles:
        own = [task for task in tasks if role == role_of_task(task, roles)]
        if own:
            examples[role] = load_task_examples(
                own, options.data_dir, options.start_index, options.end_index, options.max_tokens
            )
    return examples


def role_of_task(task: str, roles: Sequence[str]) -> str:
    return next((role for role in roles if task in TASKS_OF_ROLE[role]), roles[0])


def announce(roles: Sequence[str], parameters: MergeParameters) -> None:
    log.info("%s: %s", " + ".join(roles), run_name(parameters, len(roles)))
    if parameters.mixup is not None:
        ratios = ", ".join(f"{role} {weight}" for role, weight in zip(roles, parameters.mixup.weights, strict=True))
        log.info("M3 interpolation ratios: %s", ratios)


def delete_models(folders: Iterable[Path]) -> None:
    for folder in folders:
        remove_folder(folder)
        log.info("deleted %s", folder)


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _default(name: str, remark: str = "") -> str:
    return f"{remark}{', ' if remark else ''}default: {DEFAULTS[name]}"


if __name__ == "__main__":
    sys.exit(run_command_line(main))
