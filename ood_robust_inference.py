"""Run a model, merged or not, on LiveBench's recent tasks: answers for LiveBench's judge, and a score for typos."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from inference_llms.command_line import (
    add_inference_options,
    check_engine,
    check_inference_options,
    model_source,
)
from inference_llms.model_folder import output_places
from inference_llms.run_tasks import ModelTasks, ReplaySource, run_tasks, score_lines, task_examples
from inference_llms.tasks import livebench_coding, livebench_instruction_following, livebench_typos
from inference_llms.tasks.livebench import check_model_id
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.model_folders import find_model_folder
from utils.run_log import logged_run

log = logging.getLogger(__name__)

TASKS = {module.NAME: module.task for module in (livebench_instruction_following, livebench_coding, livebench_typos)}


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--load_model_path", type=Path, required=True, help="a Hugging Face model folder, or a hub id")
    parser.add_argument("--evaluate_task", choices=TASKS, default=livebench_instruction_following.NAME)
    parser.add_argument("--livebench_release", metavar="YYYY-MM-DD", help="questions of this release (default: all)")
    parser.add_argument("--model_id", help="names the files of answers (default: the merge's name, or the folder's)")
    add_inference_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_inference_options(options)
    if options.livebench_release is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", options.livebench_release):
        raise UserError(f"--livebench_release {options.livebench_release}: give a date, such as 2024-11-25")
    folder = options.load_model_path
    if options.backend != "replay":
        folder = find_model_folder(str(folder))
    places = output_places(folder, options.output_dir)
    model_id = places.model if options.model_id is None else options.model_id
    check_model_id(model_id)
    with logged_run():
        words = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "ood_robust_inference.py", *words])
        log.info("command: %s", command)
        if options.backend == "replay":
            source = ReplaySource(str(folder), options.replay_from)
        else:
            check_engine(options)
            source = model_source(options, folder)
        task = TASKS[options.evaluate_task](options.livebench_release, model_id).capped(options.max_tokens)
        examples = task_examples(task, options.data_dir, options.start_index, options.end_index)
        scores = run_tasks([ModelTasks({task.name: examples}, source)], places, options.overwrite, command)
        for line in score_lines(scores):
            log.info(line)
        log.info("scores: %s", places.scores())


if __name__ == "__main__":
    sys.exit(run_command_line(main))
