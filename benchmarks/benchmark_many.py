"""A merge of more fine-tunes than the main script has roles for; used by benchmark_merge.py.

python benchmarks/benchmark_many.py BASE OUT ROLE FOLDER ... OPTION ...
"""

import sys
from pathlib import Path

from model_merging_methods.command_line import add_merge_options, merge_parameters
from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_request import MergeRequest
from utils.command_line import OneLineParser


def main() -> None:
    parser = OneLineParser(allow_abbrev=False)
    add_merge_options(parser)
    base, out, *words = sys.argv[1:]
    first_option = next(index for index, word in enumerate(words) if word.startswith("--"))
    models, options = words[:first_option], parser.parse_args(words[first_option:])
    folders = {role: Path(folder) for role, folder in zip(models[::2], models[1::2], strict=True)}
    if options.mixup_lambda:
        options.mixup_lambda = [1 / len(folders)] * len(folders)
    parameters = merge_parameters(options, list(folders))
    role = next(iter(folders))
    merge_models(MergeRequest(Path(base), folders, parameters), {role: Path(out) / role})


if __name__ == "__main__":
    main()
