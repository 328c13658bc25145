"""`merge RECIPE.yml OUT_DIR`: options as mergekit's users type them, and our own."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.command_line import OneLineParser, whole_number
from utils.errors import UserError

log = logging.getLogger(__name__)

PROGRAM = "python -m model_merging_methods merge"
EXAMPLES = f"""examples:
  {PROGRAM} recipe.yml merged
  {PROGRAM} recipe.yml merged --seed 1 --out-shard-size 1B --overwrite
"""
# mergekit's options that change nothing here: weights are always streamed, tokenizers always written, cards too.
_FLAGS_WITHOUT_EFFECT = (
    *("copy-tokenizer", "lazy-unpickle", "low-cpu-memory", "clone-tensors", "safe-serialization", "write-model-card"),
    *("allow-crimes", "read-to-gpu", "multi-gpu", "gpu-rich", "async-write", "quiet", "verbose", "lazy-loader"),
    "unsafe-truncate-embeddings",
)
_VALUES_WITHOUT_EFFECT = ("lora-merge-cache", "transformers-cache", "num-threads", "write-threads", "lora-merge-dtype")


def is_recipe(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `merge` name a recipe file."""
    is_named_so = any(re.search(r"\.ya?ml$", text) and not text.startswith("-") for text in arguments)
    return is_named_so or (bool(arguments) and not arguments[0].startswith("-"))


def merge_recipe_file(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.trust_remote_code:
        raise UserError("--trust-remote-code: code of models is never run here, and merges do not need it; remove it")
    unused = [f"--{name}" for name in _without_effect(options)]
    from model_merging_methods.merge_folders import MergeWork
    from model_merging_methods.recipes.merging import check_recipe, is_random, merge_recipe, read_recipe
    from utils.run_log import log_time, logged_run

    recipe = read_recipe(options.recipe)
    if options.check:
        sys.exit(check_recipe(recipe))
    if options.seed is not None and not is_random(recipe):
        options.seed = None
        unused.append("--seed")
    with logged_run() as keep_log:
        log.info("command: %s", shlex.join([*PROGRAM.split(), *arguments]))
        if unused:
            log.info("without effect here: %s", ", ".join(unused))
        work = MergeWork(device="cuda" if options.cuda else options.device or "cpu")
        merge_recipe(
            recipe,
            options.out_dir,
            overwrite=options.overwrite,
            work=work,
            seed=options.seed,
            values_per_file=options.out_shard_size,
        )
        keep_log(options.out_dir.parent / "logs" / f"{options.out_dir.name}_{log_time()}.log")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description="Merge what a recipe says, in mergekit's YAML or as our options, into a model folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yml", help="the recipe (docs/recipes.md)")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="the folder to write")
    parser.add_argument("--check", action="store_true", help="check recipe and models, print the findings, and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT_DIR holds")
    parser.add_argument(
        *("--seed", "--random-seed", "--random_seed"),
        type=whole_number,
        help="seed of random masks and drawn ratios (default: the recipe's, else 0)",
    )
    text = "device of the arithmetic: cpu, cuda, or auto for a GPU if there is one (default: cpu)"
    parser.add_argument("--device", type=_device, help=text)
    parser.add_argument("--cuda", action=argparse.BooleanOptionalAction, help="the same as --device cuda")
    parser.add_argument(
        *("--out-shard-size", "--out_shard_size"),
        type=_number_of_values,
        metavar="N",
        help="values in a weight file, such as 5B (default: files of 2 GB)",
    )
    for name in _FLAGS_WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", f"--no-{name}", dest=name, action="store_true", help=argparse.SUPPRESS)
    for name in _VALUES_WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", dest=name, help=argparse.SUPPRESS)
    parser.add_argument("-j", dest="num-threads", help=argparse.SUPPRESS)
    parser.add_argument("-v", dest="verbose", action="count", help=argparse.SUPPRESS)
    parser.add_argument("--trust-remote-code", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    return parser


def _without_effect(options: argparse.Namespace) -> list[str]:
    return [name for name in (*_FLAGS_WITHOUT_EFFECT, *_VALUES_WITHOUT_EFFECT) if getattr(options, name)]


def _device(text: str) -> str:
    """cpu, cuda or auto; `cuda:0` is the first GPU, which cuda means too."""
    device = text.removesuffix(":0")
    if device not in ("cpu", "cuda", "auto"):
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from cpu, cuda, auto)")
    return device


def _number_of_values(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of values such as 5B or 500M")
    return int(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[found[2]])
