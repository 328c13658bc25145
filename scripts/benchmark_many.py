"""A merge of more fine-tunes than the main script has roles for; used by benchmark_merge.py.

python scripts/benchmark_many.py BASE OUT OPTION... ROLE FOLDER ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from merge_llms_instruct_math_code import build_parser, merge_parameters
from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_record import MergeRequest


def main() -> None:
    base, out, *words = sys.argv[1:]
    options, rest = build_parser().parse_known_args(words)
    folders = {role: Path(folder) for role, folder in zip(rest[::2], rest[1::2], strict=True)}
    if options.mixup_lambda:
        options.mixup_lambda = [1 / len(folders)] * len(folders)
    parameters = merge_parameters(options, list(folders))
    role = next(iter(folders))
    merge_models(MergeRequest(Path(base), folders, parameters), {role: Path(out) / role})


if __name__ == "__main__":
    main()
