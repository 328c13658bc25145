"""Merge fine-tunes of one backbone, run the merged model on its tasks, score, and record all of it."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from inference_llms.command_line import (
    add_inference_options,
    add_tasks_option,
    check_engine,
    check_inference_options,
    check_tasks_option,
    model_source,
)
from inference_llms.model_folder import check_tokenizer
from inference_llms.run_tasks import (
    ModelTasks,
    ReplaySource,
    TaskExamples,
    load_task_examples,
    run_tasks,
    score_lines,
)
from inference_llms.tasks import TASKS_OF_ROLE, role_of_task
from model_merging_methods.command_line import (
    add_merge_options,
    chosen_roles,
    merge_parameters,
    recorded_request,
    request_of_folders,
)
from model_merging_methods.merge_parameters import DEVICES, MergeParameters, run_name
from model_merging_methods.merge_record import PRETRAINED, MergeRequest, tasks_name
from utils.command_line import OneLineParser, options_on_record
from utils.custom_code import check_runs_without_code
from utils.errors import UserError, run_command_line
from utils.output_places import OutputPlaces
from utils.run_log import log_time, logged_run
from utils.whole_files import remove_folder

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)

    merging = add_merge_options(parser)
    merging.add_argument("--device", choices=DEVICES, help="what does the arithmetic (default: cpu)")

    running = parser.add_argument_group("running")
    running.add_argument("--check", action="store_true", help="check the inputs, print what is found, and stop")
    running.add_argument("--merge_only", action="store_true", help="stop after saving the merged model")
    running.add_argument("--delete_merged_model", action="store_true", help="delete the merged model once it is scored")
    add_tasks_option(running)
    add_inference_options(parser)
    return parser


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
        for line in score_lines(run_tasks(work, places, options.overwrite, command, options_on_record(options))):
            log.info(line)
        log.info("scores: %s", places.scores())
    if options.backend == "replay":
        keep_log(places.log(log_time()))
    elif options.delete_merged_model:
        delete_models(targets.values())


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


def announce(roles: Sequence[str], parameters: MergeParameters) -> None:
    log.info("%s: %s", " + ".join(roles), run_name(parameters, len(roles)))
    if parameters.mixup is not None:
        ratios = ", ".join(f"{role} {weight}" for role, weight in zip(roles, parameters.mixup.weights, strict=True))
        log.info("M3 interpolation ratios: %s", ratios)


def delete_models(folders: Iterable[Path]) -> None:
    for folder in folders:
        remove_folder(folder)
        log.info("deleted %s", folder)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
