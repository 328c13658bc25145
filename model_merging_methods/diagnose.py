"""Compare fine-tunes of one pretrained model, without merging them.

The figures go to the screen, to diagnosis.json and, as a picture, to diagnosis.png.
"""

if __name__ in ("__main__", "__mp_main__"):  # before the slow imports
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import numpy as np

from model_merging_methods.before_download import check_before_download
from model_merging_methods.comparison import ModelComparison
from model_merging_methods.kernels.magnitude_thresholds import MagnitudeSample
from model_merging_methods.merge_parameters import parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.preflight import check_inputs
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.model_folders import find_model_folder, folder_name, free_name
from utils.palette import SERIES
from utils.whole_files import empty_folder, whole_folder, write_json

EXAMPLES = """examples:
  python -m model_merging_methods diagnose --pretrained_model Qwen/Qwen2.5-0.5B --models Qwen/Qwen2.5-0.5B-Instruct DIR
  python -m model_merging_methods diagnose --pretrained_model BASE --models DIR_1 DIR_2 --output_dir out --overwrite
"""
_BINS = 60


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m model_merging_methods diagnose",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--pretrained_model", required=True, metavar="PATH_OR_HUB_ID", help="the common base")
    parser.add_argument("--models", required=True, nargs="+", metavar="PATH_OR_HUB_ID", help="two fine-tunes or more")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="root of the results (default: .)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier diagnosis of these models")
    options = parser.parse_args(arguments)
    if len(options.models) < 2:
        raise UserError("--models: give two fine-tunes or more, to compare them")

    check_before_download(lambda headers_in: _request(options, headers_in))
    request = _request(options)
    place = options.output_dir / "save_model_diagnoses" / "_".join(request.finetuned)
    if place.exists() and not options.overwrite:
        raise UserError(f"{place}: holds an earlier diagnosis; replace it with --overwrite, or choose --output_dir")
    with ExitStack() as stack:
        opened, findings = check_inputs(request, stack, allow_unrelated=True, roles=())
        findings.stop_at_errors()
        merge = opened.parts[0].merge(request.parameters)
        comparison = ModelComparison(merge.roles, merge.passes.compare(), reads_pretrained=True)
        samples = merge.passes.magnitudes.sample(merge.merged_names, masked=True)
    for warning in findings.warnings:
        print(f"warning: {warning.text}")
    print("\n".join(comparison.table()))
    with whole_folder(place, replace=options.overwrite) as folder:
        empty_folder(folder)
        inputs = {name: str(path.resolve()) for name, path in request.inputs.items()}
        write_json(folder / "diagnosis.json", {"inputs": inputs, **comparison.to_record()})
        draw_comparison(comparison, samples, folder / "diagnosis.png")
    print(f"figures: {place / 'diagnosis.json'}\npicture: {place / 'diagnosis.png'}")


def _request(options: argparse.Namespace, headers_in: Path | None = None) -> MergeRequest:
    """A merge of the models. Models of the hub are downloaded, or only their headers (see `find_model_folder`)."""
    pretrained = find_model_folder(options.pretrained_model, headers_in=headers_in)
    models = _by_name([find_model_folder(model, headers_in=headers_in) for model in options.models])
    return MergeRequest(pretrained, models, parameters_of("task_arithmetic"))


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names, with a number appended to equal ones."""
    names: dict[str, Path] = {}
    for folder in folders:
        name = folder_name(folder)
        names[free_name(name, names)] = folder
    return names


def draw_comparison(comparison: ModelComparison, samples: Sequence[MagnitudeSample], path: Path) -> None:
    """Save a PNG of a comparison with the pretrained model. `samples` hold |δ| of every model."""
    from matplotlib.figure import Figure  # imported late: it takes a while

    figure = Figure(figsize=(max(11, 6 + 0.28 * len(comparison.groups)), 9), layout="constrained")
    cosines, changes, sizes = figure.subplots(3, 1, height_ratios=(0.6 + 0.35 * len(comparison.overall.pairs), 3, 3))
    _draw_cosines(comparison, figure, cosines)
    _draw_changes(comparison, changes)
    _draw_sizes(comparison, samples, sizes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a model's name in a script that the font lacks
        figure.savefig(path, dpi=130)


def _draw_cosines(comparison: ModelComparison, figure, axes) -> None:
    from matplotlib.colors import SymLogNorm

    groups, pairs = comparison.groups, list(comparison.overall.pairs)
    values = np.array([[group.pairs[pair].cosine or 0.0 for group in groups.values()] for pair in pairs])
    # Logarithmic above 0.01: cosines are a few hundredths in most layers, and near 1 in some small tensors.
    image = axes.imshow(values, cmap="PuOr", norm=SymLogNorm(0.01, vmin=-1, vmax=1), aspect="auto")
    axes.set_title("cosine between task vectors, by layer")
    axes.set_xticks(range(len(groups)), _short_names(groups), rotation=90)
    axes.set_yticks(range(len(pairs)), [" + ".join(pair) for pair in pairs])
    figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.015, 1)))


def _draw_changes(comparison: ModelComparison, axes) -> None:
    groups = comparison.groups
    for role, colour in zip(comparison.roles, cycle(SERIES)):
        values = [group.models[role].change or 0.0 for group in groups.values()]
        overall = comparison.overall.models[role].change or 0.0
        axes.plot(values, ".-", color=colour, label=f"{role} (all: {overall:.4f})")
    axes.set_title("how far the weights moved, by layer")
    axes.set_ylabel("|δ| / |θ0|")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(groups)), _short_names(groups), rotation=90)
    axes.grid(axis="y", alpha=0.3)
    _legend_beside(axes)


def _draw_sizes(comparison: ModelComparison, samples: Sequence[MagnitudeSample], axes) -> None:
    """A histogram of the changed values in a sample, scaled to the share of changed values in the whole model."""
    magnitudes = [np.concatenate(sample.pieces) for sample in samples]
    changed = {role: values[values > 0] for role, values in zip(comparison.roles, magnitudes, strict=True)}
    present = [values for values in changed.values() if values.size]
    if present:
        low = min(float(np.quantile(values, 0.001)) for values in present)
        high = max(float(values.max()) for values in present)
        edges = np.geomspace(low, max(high, low * 10), _BINS)
        for (role, values), colour in zip(changed.items(), cycle(SERIES)):
            unchanged = comparison.overall.models[role].unchanged
            weights = np.full(values.size, 100 * (1 - unchanged) / max(values.size, 1))
            label = f"{role} ({unchanged:.1%} unchanged)"
            axes.hist(values, edges, weights=weights, histtype="step", color=colour, label=label, linewidth=1.5)
        axes.set_xscale("log")
        _legend_beside(axes)
    axes.set_title("sizes of the changes")
    axes.set_xlabel("|δ| of a value")
    axes.set_ylabel("% of values")


def _legend_beside(axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def _short_names(groups: Sequence[str]) -> list[str]:
    return [name.removeprefix("layer ") for name in groups]


if __name__ == "__main__":
    sys.exit(run_command_line(main))
