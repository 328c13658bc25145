"""Run the tasks on any model folder: python -m inference_llms --load_model_path DIR --tasks gsm8k ..."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from inference_llms.command_line import (
    add_inference_options,
    add_tasks_option,
    check_engine,
    check_inference_options,
    check_tasks_option,
    model_source,
)
from inference_llms.model_folder import output_places
from inference_llms.run_tasks import ModelTasks, ReplaySource, load_task_examples, run_tasks, score_lines
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.model_folders import find_model_folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m inference_llms", description=__doc__, allow_abbrev=False)
    parser.add_argument("--load_model_path", type=Path, required=True, help="a Hugging Face model folder, or a hub id")
    add_tasks_option(parser)
    add_inference_options(parser)
    options = parser.parse_args(arguments)
    check_inference_options(options)
    check_tasks_option(options)
    if options.tasks is None:
        raise UserError("--tasks is missing; name one or more of them, see --help")

    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "inference_llms", *words])
    folder = options.load_model_path
    if options.backend != "replay":
        folder = find_model_folder(str(folder))
    places = output_places(folder, options.output_dir)
    if options.backend == "replay":
        source = ReplaySource(str(folder), options.replay_from)
    else:
        check_engine(options)
        source = model_source(options, folder)
    examples = load_task_examples(
        options.tasks, options.data_dir, options.start_index, options.end_index, options.max_tokens
    )
    scores = run_tasks([ModelTasks(examples, source)], places, options.overwrite, command)
    print("\n".join(score_lines(scores)))
    print(f"scores: {places.scores()}")


if __name__ == "__main__":
    sys.exit(run_command_line(main))
