"""Merge fine-tunes of one pretrained model, run the merged model on its tasks and score it."""

if __name__ in ("__main__", "__mp_main__"):  # before the slow imports
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inference_llms.command_line import (
    add_inference_options,
    add_tasks_option,
    check_chat_template,
    check_engine,
    check_inference_options,
    check_tasks_option,
    chosen_examples,
    model_source,
)
from inference_llms.model_folder import check_tokenizer
from inference_llms.prompt_format import prompt_format
from inference_llms.run_tasks import (
    ModelTasks,
    ReplaySource,
    TaskExamples,
    run_tasks,
    score_lines,
)
from inference_llms.tasks import role_of_task, tasks_of_models
from model_merging_methods.command_line import (
    add_merge_options,
    check_nothing_else,
    chosen_roles,
    merge_parameters,
    requested_merge,
)
from model_merging_methods.merge_request import PRETRAINED, MergeRequest, run_name, tasks_name
from utils.command_line import OneLineParser, options_on_record
from utils.custom_code import check_runs_without_code
from utils.errors import UserError, run_command_line
from utils.model_folders import FINETUNED_MODELS
from utils.output_places import OutputPlaces
from utils.run_log import log_time, logged_run
from utils.whole_files import remove_folder

if TYPE_CHECKING:
    from model_merging_methods.recipes.recipe import Recipe

log = logging.getLogger(__name__)

SCRIPT = "merge_llms_instruct_math_code.py"
RECIPE = "recipe"  # in place of the models' roles
EXAMPLES = f"""examples:
  python {SCRIPT} --merge_instruct --merge_math --merging_method_name average_merging --mixup --alpha 0.5
  python {SCRIPT} --merge_math --merge_code --merging_method_name ties_merging --merge_only
      --pretrained_model BASE_DIR --math_model DIR --code_model DIR
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_merge_options(parser)
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="merge this recipe instead (docs/recipes.md)")
    running = parser.add_argument_group("running")
    running.add_argument("--print_recipe", action="store_true", help="print the merge as a recipe, and stop")
    running.add_argument("--check", action="store_true", help="check the inputs, print the findings, and stop")
    running.add_argument("--merge_only", action="store_true", help="stop after saving the merged model")
    running.add_argument("--delete_merged_model", action="store_true", help="delete the merged model once it is scored")
    add_tasks_option(running)
    add_inference_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_tasks_option(options)
    check_inference_options(options)
    replays = options.backend == "replay"
    if options.merge_only and (options.delete_merged_model or replays):
        raise UserError("--merge_only saves a model; remove it, or remove --delete_merged_model and --backend replay")
    if replays and (options.check or options.device is not None or options.allow_unrelated):
        raise UserError(
            "--check, --device, --allow_unrelated: have no effect with --backend replay, which merges nothing"
        )
    recipe = None
    if options.recipe is not None:
        from model_merging_methods.recipes.merging import check_recipe, read_recipe
        from model_merging_methods.recipes.option_recipe import OptionRecipe

        models = (PRETRAINED, *FINETUNED_MODELS)
        others = ("from_record", "models", "allow_unrelated", *(f"{role}_model" for role in models))
        check_nothing_else(options, "--recipe", others)
        recipe = read_recipe(options.recipe)
        if isinstance(recipe, OptionRecipe):
            own = {"device": options.device, "recipe": None}
            options = argparse.Namespace(**vars(options) | vars(recipe.options) | own)
    if options.print_recipe and options.recipe is not None:
        raise UserError(f"--print_recipe: {options.recipe} is a recipe already; remove the option")
    if options.print_recipe:
        from model_merging_methods.recipes.writing import print_recipe

        print_recipe(options)
        return
    if options.check and options.recipe is not None:
        sys.exit(check_recipe(recipe))
    if options.check:
        from model_merging_methods.preflight import print_findings

        sys.exit(print_findings(partial(requested_merge, options), options.allow_unrelated, options.from_record))
    with logged_run() as keep_log:
        command = shlex.join(["python", SCRIPT, *(sys.argv[1:] if arguments is None else arguments)])
        log.info("command: %s", command)
        if options.recipe is None:
            merge_infer_score(options, command, keep_log)
        else:
            merge_recipe_infer_score(options, recipe, command, keep_log)


def merge_infer_score(options: argparse.Namespace, command: str, keep_log: Callable[[Path], None]) -> None:
    """Check everything first; then merge, and run and score each role's tasks with that role's folder, one engine at a
    time. Records contain `command`."""
    if options.backend == "replay" and options.from_record is None:
        request, roles = None, chosen_roles(options)
        parameters = merge_parameters(options, roles)
    else:
        request = requested_merge(options)
        roles, parameters = request.roles, request.parameters
    name = run_name(parameters, len(roles)) if request is None else request.run_name
    places = OutputPlaces(options.output_dir, tasks_name(roles), name)
    targets = {role: places.merged_model(role) for role in roles}
    examples = {} if options.merge_only else load_examples_by_role(options, roles)
    log.info("%s: %s", " + ".join(roles), name)
    if parameters.mixup is not None and RECIPE not in roles:
        ratios = ", ".join(f"{role} {ratio}" for role, ratio in zip(roles, parameters.mixup.ratios, strict=True))
        log.info("M3 interpolation ratios: %s", ratios)

    replays = options.backend == "replay"
    if not replays:
        merge(options, request, targets, examples)
    run_and_score(options, places, targets, examples, command, keep_log)


def run_and_score(
    options: argparse.Namespace,
    places: OutputPlaces,
    targets: Mapping[str, Path],
    examples: Mapping[str, dict[str, TaskExamples]],
    command: str,
    keep_log: Callable[[Path], None],
) -> None:
    """Run each merged model on its examples, or replay them, and score the answers."""
    replays = options.backend == "replay"
    if not replays:
        keep_log(places.log(log_time()))
    sources = {
        role: ReplaySource(str(targets[role]), options.replay_from) if replays else model_source(options, targets[role])
        for role in examples
    }
    work = [ModelTasks(task_examples, sources[role]) for role, task_examples in examples.items()]
    if work:
        for line in score_lines(run_tasks(work, places, options.overwrite, command, options_on_record(options))):
            log.info(line)
        log.info("scores: %s", places.scores())
    if replays:
        keep_log(places.log(log_time()))
    elif options.delete_merged_model:
        for folder in targets.values():
            remove_folder(folder)
            log.info("deleted %s", folder)


def merge_recipe_infer_score(
    options: argparse.Namespace, recipe: Sequence["Recipe"], command: str, keep_log: Callable[[Path], None]
) -> None:
    """The same for a recipe, whose merged model runs all tasks."""
    from model_merging_methods.merge_folders import MergeWork
    from model_merging_methods.recipes.merging import merge_recipe, recipe_run_name

    places = OutputPlaces(options.output_dir, RECIPE, recipe_run_name(options.recipe, recipe))
    target = places.merged_model(RECIPE)
    examples = {} if options.merge_only else load_examples_by_role(options, [RECIPE])
    if options.backend != "replay":
        if examples:
            check_engine(options)
        merge_recipe(recipe, target, overwrite=options.overwrite, work=MergeWork(device=options.device or "cpu"))
    run_and_score(options, places, {RECIPE: target}, examples, command, keep_log)


def load_examples_by_role(options: argparse.Namespace, roles: Sequence[str]) -> dict[str, dict[str, TaskExamples]]:
    """The tasks to run, by the merged model whose tokenizer they use: their own model's, or the first's if that is not
    merged."""
    tasks = options.tasks or tasks_of_models(roles)
    tasks_of = {role: [task for task in tasks if role == role_of_task(task, roles)] for role in roles}
    return {role: chosen_examples(options, own) for role, own in tasks_of.items() if own}


def merge(
    options: argparse.Namespace, request: MergeRequest, targets: Mapping[str, Path], examples: Mapping[str, object]
) -> None:
    """Merge into `targets`, after checking that the result can run the examples."""
    if examples:
        check_engine(options)
    for role in examples if request.recipe is None else ():
        check_runs_without_code(request.inputs[request.parameters.config_from or PRETRAINED])
        folder = check_tokenizer([request.finetuned.get(role, request.pretrained), request.pretrained])
        check_chat_template(folder, prompt_format(options))
    # The processes that vLLM starts import this script; its CPU build stumbles over numba there.
    from model_merging_methods.merge_folders import MergeWork, merge_folders

    work = MergeWork(device=options.device or "cpu", allow_unrelated=options.allow_unrelated)
    merge_folders(request, targets, overwrite=options.overwrite, made_from=options.from_record, work=work)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
