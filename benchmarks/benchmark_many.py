"""A merge of more fine-tunes than the main script has roles for; used by benchmark_merge.py.

python benchmarks/benchmark_many.py BASE OUT ROLE FOLDER ... OPTION ...
"""

import sys
from pathlib import Path

from model_merging_methods.command_line import add_merge_options, merge_parameters
from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_request import MergeRequest
from utils.command_line import OneLineParser
from utils.errors import run_command_line

USAGE = "usage: python benchmarks/benchmark_many.py BASE OUT ROLE FOLDER ... OPTION ..., with the main script's options"


def main() -> None:
    parser = OneLineParser(allow_abbrev=False)
    add_merge_options(parser)
    words = sys.argv[1:]
    if "--help" in words:
        print(USAGE)
        return
    number = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    if number < 4 or number % 2:
        sys.exit(USAGE)
    (base, out, *models), options = words[:number], parser.parse_args(words[number:])
    folders = {role: Path(folder) for role, folder in zip(models[::2], models[1::2], strict=True)}
    if options.mixup_lambda:
        options.mixup_lambda = [1 / len(folders)] * len(folders)
    parameters = merge_parameters(options, list(folders))
    role = next(iter(folders))
    merge_models(MergeRequest(Path(base), folders, parameters), {role: Path(out) / role})


if __name__ == "__main__":
    sys.exit(run_command_line(main))
