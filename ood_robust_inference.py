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

from inference_llms.command_line import add_inference_options, check_inference_options, score_model_folder
from inference_llms.tasks import LIVEBENCH_TASKS
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.run_log import logged_run

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  python ood_robust_inference.py --load_model_path DIR --evaluate_task typos
  python ood_robust_inference.py --load_model_path DIR --evaluate_task coding --livebench_release 2024-11-25
"""


def build_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, epilog=EXAMPLES, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--load_model_path", type=Path, required=True, help="a Hugging Face model folder, or a hub id")
    default = LIVEBENCH_TASKS[0]
    parser.add_argument("--evaluate_task", choices=LIVEBENCH_TASKS, default=default, help=f"default: {default}")
    parser.add_argument(
        "--livebench_release", metavar="YYYY-MM-DD", help="only the questions of this release (default: all)"
    )
    parser.add_argument("--model_id", help="name of the files of answers (default: the merge's or the folder's name)")
    add_inference_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    check_inference_options(options)
    if options.livebench_release is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", options.livebench_release):
        raise UserError(f"--livebench_release {options.livebench_release}: give a date, such as 2024-11-25")
    with logged_run():
        words = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "ood_robust_inference.py", *words])
        log.info("command: %s", command)
        for line in score_model_folder(
            options, [options.evaluate_task], command, options.livebench_release, options.model_id
        ):
            log.info(line)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
