"""Run tasks on a model folder, score the answers, and print the evaluators' commands for the rest."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from inference_llms.command_line import (
    add_inference_options,
    add_tasks_option,
    check_inference_options,
    check_tasks_option,
    score_model_folder,
    show_prompts,
)
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line

EXAMPLES = """examples:
  python -m inference_llms --load_model_path DIR --tasks gsm8k MATH
  python -m inference_llms --load_model_path DIR --tasks human_eval --data_dir DATA --end_index 20
  python -m inference_llms --load_model_path DIR --show gsm8k lm_eval:arc_easy --prompt_format chat
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m inference_llms",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--load_model_path", type=Path, required=True, help="a Hugging Face model folder, or a hub id")
    add_tasks_option(parser)
    text = "print a few prompts of these tasks as the model gets them, and stop"
    parser.add_argument("--show", nargs="+", metavar="TASK", help=text)
    add_inference_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    if options.show and options.tasks:
        raise UserError("--tasks has no effect with --show, which names tasks itself; remove one of them")
    if options.show:
        options.tasks = list(dict.fromkeys(options.show))
    check_tasks_option(options)
    check_inference_options(options)
    if options.show:
        print("\n".join(show_prompts(options, options.tasks)))
        return
    if options.tasks is None:
        raise UserError("--tasks is missing; name one or more of them, see --help")
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "inference_llms", *words])
    print("\n".join(score_model_folder(options, options.tasks, command)))


if __name__ == "__main__":
    sys.exit(run_command_line(main))
