"""A picture of how models lie to each other: cosines by layer, change by layer, sizes of changes."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_merging_methods.kernels.magnitude_thresholds import MagnitudeSample
from model_merging_methods.model_comparison import ModelComparison

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_BINS = 60


def draw_comparison(comparison: ModelComparison, samples: Sequence[MagnitudeSample], path: Path) -> None:
    """Save a PNG of a comparison with the pretrained model. `samples` hold |δ| of every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8, 3 + 0.28 * len(comparison.groups)), 9), layout="constrained")
    cosines, changes, sizes = figure.subplots(3, 1, height_ratios=(0.6 + 0.35 * len(comparison.overall.pairs), 3, 3))
    _draw_cosines(comparison, figure, cosines)
    _draw_changes(comparison, changes)
    _draw_sizes(comparison, samples, sizes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a model's name in a script that the font lacks
        figure.savefig(path, dpi=130)


def _draw_cosines(comparison: ModelComparison, figure, axes) -> None:
    groups, pairs = comparison.groups, list(comparison.overall.pairs)
    values = np.array([[group.pairs[pair].cosine or 0.0 for group in groups.values()] for pair in pairs])
    largest = max(float(np.abs(values).max()), 0.01)
    image = axes.imshow(values, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_title("cosine between task vectors, by layer")
    axes.set_xticks(range(len(groups)), _short_names(groups), rotation=90)
    axes.set_yticks(range(len(pairs)), [" + ".join(pair) for pair in pairs])
    figure.colorbar(image, ax=axes, pad=0.01)


def _draw_changes(comparison: ModelComparison, axes) -> None:
    groups = comparison.groups
    for i, role in enumerate(comparison.roles):
        values = [group.models[role].change or 0.0 for group in groups.values()]
        overall = comparison.overall.models[role].change or 0.0
        axes.plot(values, ".-", color=_COLOURS[i % len(_COLOURS)], label=f"{role} (all: {overall:.3g})")
    axes.set_title("how far the weights moved, by layer")
    axes.set_ylabel("|δ| / |θ0|")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(groups)), _short_names(groups), rotation=90)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _draw_sizes(comparison: ModelComparison, samples: Sequence[MagnitudeSample], axes) -> None:
    magnitudes = [np.concatenate(sample.pieces) for sample in samples]
    changed = [values[values > 0] for values in magnitudes]
    present = [values for values in changed if values.size]
    if present:
        low = min(float(np.quantile(values, 0.001)) for values in present)
        high = max(float(values.max()) for values in present)
        edges = np.geomspace(low, max(high, low * 10), _BINS)
        for i, role in enumerate(comparison.roles):
            weights = np.full(changed[i].size, 100 / max(magnitudes[i].size, 1))
            unchanged = 100 * (1 - changed[i].size / max(magnitudes[i].size, 1))
            label = f"{role} (and {unchanged:.1f} % unchanged)"
            colour = _COLOURS[i % len(_COLOURS)]
            axes.hist(changed[i], edges, weights=weights, histtype="step", color=colour, label=label, linewidth=1.5)
        axes.set_xscale("log")
        axes.legend(loc="upper left")
    axes.set_title("sizes of the changes")
    axes.set_xlabel("|δ| of a value")
    axes.set_ylabel("% of values")


def _short_names(groups: Sequence[str]) -> list[str]:
    return [name.removeprefix("layer ") for name in groups]
