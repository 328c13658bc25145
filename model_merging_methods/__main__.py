"""Merge models, compare them, or list the methods, without inference."""

if __name__ in ("__main__", "__mp_main__"):  # before the slow imports
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from utils.command_line import OneLineParser
from utils.errors import run_command_line

log = logging.getLogger(__name__)

PROGRAM = "python -m model_merging_methods"
MERGE_EXAMPLES = f"""A recipe, in mergekit's YAML or as these options (its own options: --help after it):
  {PROGRAM} merge RECIPE.yml OUT_DIR

examples:
  {PROGRAM} merge --merging_method_name ties_merging --pretrained_model BASE --models math=DIR code=DIR
  {PROGRAM} merge --merge_instruct --merge_math --merging_method_name nuslerp --mixup_lambda 0.3 --check
"""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = "\n".join(f"  {name:<10}{text}" for name, (text, _) in COMMANDS.items())
    parser = OneLineParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [-h] {{{','.join(COMMANDS)}}} ...",
        description=f"{__doc__}\n\ncommands, each with its own --help:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments[:1])
    COMMANDS[options.command][1](arguments[1:])


def merge(arguments: Sequence[str]) -> None:
    """Merge into the folders that the main job's --merge_only uses, or a recipe into any folder."""
    from model_merging_methods.recipes.command import is_recipe, merge_recipe_file

    if is_recipe(arguments):
        merge_recipe_file(arguments)
        return
    from model_merging_methods.command_line import add_merge_options, requested_merge
    from model_merging_methods.merge_request import tasks_name
    from utils.output_places import OutputPlaces
    from utils.run_log import log_time, logged_run

    layout = argparse.RawDescriptionHelpFormatter
    text = "Merge fine-tunes of one pretrained model, and save the result with each model's tokenizer."
    parser = OneLineParser(
        prog=f"{PROGRAM} merge", description=text, epilog=MERGE_EXAMPLES, formatter_class=layout, allow_abbrev=False
    )
    add_merge_options(parser)
    running = parser.add_argument_group("running")
    running.add_argument("--print_recipe", action="store_true", help="print the merge as a recipe, and stop")
    running.add_argument("--check", action="store_true", help="check the inputs, print the findings, and stop")
    running.add_argument(
        "--output_dir", type=Path, default=Path(), help="root of every save_* folder (default: this folder)"
    )
    running.add_argument("--overwrite", action="store_true", help="replace other models in the same folders")
    options = parser.parse_args(arguments)
    if options.check:
        from model_merging_methods.preflight import print_findings

        sys.exit(print_findings(partial(requested_merge, options), options.allow_unrelated, options.from_record))
    if options.print_recipe:
        from model_merging_methods.recipes.writing import print_recipe

        print_recipe(options)
        return
    with logged_run() as keep_log:
        log.info("command: %s", shlex.join([*PROGRAM.split(), "merge", *arguments]))
        request = requested_merge(options)
        from model_merging_methods.merge_folders import MergeWork, merge_folders

        places = OutputPlaces(options.output_dir, tasks_name(request.roles), request.run_name)
        targets = {role: places.merged_model(role) for role in request.roles}
        work = MergeWork(device=options.device or "cpu", allow_unrelated=options.allow_unrelated)
        merge_folders(request, targets, overwrite=options.overwrite, made_from=options.from_record, work=work)
        keep_log(places.log(log_time()))


def diagnose(arguments: Sequence[str]) -> None:
    from model_merging_methods.diagnose import main

    main(arguments)


def methods(arguments: Sequence[str]) -> None:
    from model_merging_methods.describe import markdown, method_page, methods_table

    parser = OneLineParser(
        prog=f"{PROGRAM} methods", description="List all methods and masks, or describe one.", allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="describe this method or mask")
    parser.add_argument("--markdown", action="store_true", help="print docs/methods.md")
    options = parser.parse_args(arguments)
    if options.markdown:
        print(markdown(), end="")
    else:
        print(methods_table() if options.name is None else method_page(options.name))


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "merge": ("merge models and save the result", merge),
    "diagnose": ("compare fine-tunes without merging them", diagnose),
    "methods": ("list methods and masks, or describe one with its options", methods),
}


if __name__ == "__main__":
    sys.exit(run_command_line(main))
