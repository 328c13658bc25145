"""How fine-tunes of one backbone lie to each other: python -m model_merging_methods.diagnose ...

Nothing is merged. The figures go to the screen, to diagnosis.json and, as a picture, to diagnosis.png.
"""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from model_merging_methods.comparison_picture import draw_comparison
from model_merging_methods.merge_engine import Merge
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import MergeRequest
from model_merging_methods.model_comparison import ModelComparison
from model_merging_methods.preflight import check_inputs
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.model_folders import find_model_folder
from utils.whole_files import empty_folder, whole_folder, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m model_merging_methods.diagnose", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pretrained_model", required=True, metavar="PATH_OR_HUB_ID")
    parser.add_argument("--models", required=True, nargs="+", metavar="PATH_OR_HUB_ID", help="two fine-tunes or more")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="default: the working folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier diagnosis of these models")
    options = parser.parse_args(arguments)
    if len(options.models) < 2:
        raise UserError("--models: give two fine-tunes or more, to compare them")

    pretrained = find_model_folder(options.pretrained_model)
    models = _by_name([find_model_folder(model) for model in options.models])
    place = options.output_dir / "save_model_diagnoses" / "_".join(models)
    if place.exists() and not options.overwrite:
        raise UserError(f"{place}: holds an earlier diagnosis; replace it with --overwrite, or choose --output_dir")
    request = MergeRequest(pretrained, models, MergeParameters("task_arithmetic"))
    with ExitStack() as stack:
        aligned, findings = check_inputs(request, stack, allow_unrelated=True, roles=())
        findings.stop_at_errors()
        merge = Merge(aligned, list(models), request.parameters)
        comparison = ModelComparison(merge.roles, merge.compare(), reads_pretrained=True)
        samples = merge.sample_magnitudes(merge.merged_names, masks=True)
    for warning in findings.warnings:
        print(f"warning: {warning.text}")
    print("\n".join(comparison.table()))
    with whole_folder(place, replace=options.overwrite) as folder:
        empty_folder(folder)
        inputs = {name: str(path.resolve()) for name, path in request.inputs.items()}
        write_json(folder / "diagnosis.json", {"inputs": inputs, **comparison.to_record()})
        draw_comparison(comparison, samples, folder / "diagnosis.png")
    print(f"figures: {place / 'diagnosis.json'}\npicture: {place / 'diagnosis.png'}")


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names, with a number where names are the same."""
    names: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        taken = sum(other == name or other.startswith(f"{name}.") for other in names)
        names[f"{name}.{taken + 1}" if taken else name] = folder
    return names


if __name__ == "__main__":
    sys.exit(run_command_line(main))
