"""Comparison of a merge's models: how far each moved from the pretrained one, and how they agree.

The figures come from sums over positions (`kernel_plan.Sums`) that a merge computes while it streams. If the merge
does not read the pretrained model, its models are compared with each other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS, OUTPUT_BIASES, OUTPUT_EMBEDDINGS
from model_merging_methods.engine import Merge
from model_merging_methods.kernels.kernel_plan import Sums
from utils.errors import UserError

# A model with this |δ| / |θ0| or more counts as one with another backbone. Fine-tuning moves the weights of a 7B to 13B
# Llama, whose standard deviation is about 0.02, by less than 0.002 to 0.005 (DARE, Yu et al. 2024): a few hundredths
# in these terms, and 0.15 to 0.2 in the tiny zoo, whose fine-tunes forget much. Continued pretraining (CodeLlama)
# changes weights by up to 0.03, more than their size. Two models trained independently, such as Llama 1 and Llama 2,
# are √2 apart.
LARGEST_CHANGE = 0.5
# The same for two models without the pretrained one: each may have moved as far, in another direction.
LARGEST_DISTANCE = LARGEST_CHANGE * sqrt(2)

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class ModelFigures:
    """A model's |δ| / |θ0| and share of unchanged values (None if the pretrained model is not read), and the shares
    that the mask and trimming kept (None without them)."""

    change: float | None
    unchanged: float | None
    kept_by_mask: float | None
    kept_by_trim: float | None

    @property
    def changed_kept_by_trim(self) -> float | None:
        """The share of the changed values that trimming kept; a threshold of 0 keeps the unchanged ones as well."""
        changed = 1 - self.unchanged
        return min(self.kept_by_trim, changed) / changed if changed else None


@dataclass(frozen=True)
class PairFigures:
    """The cosine between two task vectors and the share of positions where they have opposite signs. If the pretrained
    model is not read: the cosine between two models' weights, their relative distance |θi − θj| / √(|θi| |θj|), and
    the share of equal values."""

    cosine: float | None
    sign_conflicts: float | None = None
    distance: float | None = None
    equal: float | None = None


@dataclass(frozen=True)
class GroupFigures:
    """The number of values of some parameters together, and figures by role and by pair of roles."""

    values: int
    models: dict[str, ModelFigures]
    pairs: dict[tuple[str, str], PairFigures]


class ModelComparison:
    """Figures over all parameters (`overall`) and by group: embeddings, each layer, output, the rest.

    `sums` are `kernel_plan.Sums` in a row, by parameter.
    """

    def __init__(
        self,
        roles: Sequence[str],
        sums: Mapping[str, np.ndarray],
        reads_pretrained: bool,
        is_masked: bool = False,
        is_trimmed: bool = False,
    ):
        self.roles = list(roles)
        self.reads_pretrained = reads_pretrained
        self._is_masked, self._is_trimmed = is_masked, is_trimmed
        by_group: dict[str, np.ndarray] = {}
        for name, row in sums.items():
            group = layer_group(name)
            by_group[group] = by_group.get(group, 0) + row
        self.groups = {group: self._figures(by_group[group]) for group in sorted(by_group, key=_group_order)}
        self.overall = self._figures(sum(by_group.values()))

    def to_record(self) -> dict[str, Any]:
        """All figures, rounded to six digits, for a merge's record."""
        return {
            "compared_with": "the pretrained model" if self.reads_pretrained else "each other",
            "overall": _group_record(self.overall),
            "groups": {name: _group_record(figures) for name, figures in self.groups.items()},
        }

    def screen_lines(self) -> list[str]:
        """A few lines for the screen: the figures of all parameters together."""
        figures = self.overall
        table = []
        if self.reads_pretrained:
            table = [["model", "|δ| / |θ0|", "unchanged"]]
            table[0] += ["kept by mask"] * self._is_masked + ["changed ones kept by trimming"] * self._is_trimmed
            for role, of in figures.models.items():
                row = [role, _number(of.change), _share(of.unchanged)]
                row += [_share(of.kept_by_mask)] if self._is_masked else []
                row += [_share(of.changed_kept_by_trim)] if self._is_trimmed else []
                table.append(row)
            pairs = [["task vectors", "cosine", "opposite signs"]]
            pairs += [[" + ".join(p), _number(f.cosine), _share(f.sign_conflicts)] for p, f in figures.pairs.items()]
        else:
            pairs = [["models", "distance / |θ|", "cosine", "equal values"]]
            for pair, of in figures.pairs.items():
                pairs.append([" + ".join(pair), _number(of.distance), _number(of.cosine), _share(of.equal)])
        return _aligned(table) + (_aligned(pairs) if figures.pairs else [])

    def table(self) -> list[str]:
        """Lines of tables with a row per group, compared with the pretrained model."""
        rows = [*self.groups.items(), ("all", self.overall)]
        changes = [["|δ| / |θ0| (unchanged)", *self.roles]]
        changes += [
            [name, *(f"{_number(of.change)} ({_share(of.unchanged)})" for of in figures.models.values())]
            for name, figures in rows
        ]
        pairs = [["cosine (opposite signs)", *(" + ".join(pair) for pair in self.overall.pairs)]]
        pairs += [
            [name, *(f"{_number(of.cosine)} ({_share(of.sign_conflicts)})" for of in figures.pairs.values())]
            for name, figures in rows
        ]
        return [*_aligned(changes), "", *_aligned(pairs)]

    def _figures(self, row: np.ndarray) -> GroupFigures:
        sums = Sums.of(np.asarray(row, np.float64), len(self.roles))
        pretrained_square, values = sums.whole
        models = {}
        for i, role in enumerate(self.roles):
            square, zeros, kept_by_mask, kept_by_trim = sums.models[i]
            models[role] = ModelFigures(
                change=_root_of_ratio(square, pretrained_square) if self.reads_pretrained else None,
                unchanged=zeros / values if self.reads_pretrained else None,
                kept_by_mask=kept_by_mask / values if self._is_masked else None,
                kept_by_trim=kept_by_trim / values if self._is_trimmed else None,
            )
        pairs = {}
        for (i, first), (j, second) in combinations(enumerate(self.roles), 2):
            product, conflicts, distance, equal = sums.pairs[i, j]
            norms = sqrt(sums.models[i, 0] * sums.models[j, 0])
            cosine = product / norms if norms else None
            if self.reads_pretrained:
                pairs[first, second] = PairFigures(cosine, sign_conflicts=conflicts / values)
            else:
                pairs[first, second] = PairFigures(
                    cosine, distance=_root_of_ratio(distance, norms), equal=equal / values
                )
        return GroupFigures(int(values), models, pairs)


def layer_group(name: str) -> str:
    """The group of a parameter: `layer 7`, `embeddings`, `output` or `other`."""
    layer = _LAYER.search(name)
    if layer:
        return f"layer {layer[1]}"
    if name.endswith(INPUT_EMBEDDINGS):
        return "embeddings"
    return "output" if name.endswith((*OUTPUT_EMBEDDINGS, *OUTPUT_BIASES)) else "other"


def _group_order(group: str) -> tuple[int, int]:
    if group.startswith("layer "):
        return 1, int(group.removeprefix("layer "))
    return {"embeddings": 0, "output": 2, "other": 3}[group], 0


def merge_comparison(merge: Merge, sums: Mapping[str, np.ndarray], is_merged: bool = True) -> ModelComparison:
    """The comparison from a merge's sums; `is_merged`: the sums are of masked and trimmed models."""
    parameters = merge.parameters
    counts_kept = is_merged and not merge.needs_whole_tensors  # masks of whole tensors are not counted
    return ModelComparison(
        merge.roles,
        sums,
        parameters.reads_base,
        is_masked=counts_kept and parameters.mask is not None,
        is_trimmed=counts_kept and parameters.method == "ties_merging",
    )


def check_related(merge: Merge) -> None:
    """Raise UserError, with the figure and the likely cause, unless a sample of the models' matrices looks like
    fine-tunes of one backbone. Norms and biases are ignored: they are similar in all models."""
    sums = merge.passes.compare_sample()
    matrices = {name: row for name, row in sums.items() if len(merge.models.forms[name].shape) > 1}
    comparison = merge_comparison(merge, matrices or sums, is_merged=False)
    base, *finetuned = [model.config for model in merge.models.models]
    configs = dict(zip(merge.roles, finetuned, strict=True))
    for role, figures in comparison.overall.models.items():
        if figures.change is not None and figures.change >= LARGEST_CHANGE:
            raise UserError(
                f"model {role}: its task vector is {figures.change:.2g} times as long as the pretrained model's "
                f"weights, but fine-tuning gives less than {LARGEST_CHANGE}, so it probably has another "
                f"backbone{_differences(configs[role], base)}; give fine-tunes of one pretrained model, or add "
                "--allow_unrelated"
            )
    far = [pair for pair, figures in comparison.overall.pairs.items() if (figures.distance or 0) >= LARGEST_DISTANCE]
    if far:
        distance = max(comparison.overall.pairs[pair].distance for pair in far)
        suspects = _in_all(far) if len(merge.roles) > 2 else list(far[0])
        hints = _differences(configs[suspects[0]], base) if len(suspects) == 1 else ""
        raise UserError(
            f"{' and '.join(f'model {role}' for role in suspects)}: the models differ by {distance:.2g} times their "
            f"weights' length, but fine-tunes of one backbone differ by less than {LARGEST_DISTANCE:.2g}, so "
            f"one probably has another backbone{hints}; give fine-tunes of one pretrained model, or add "
            "--allow_unrelated"
        )


def _in_all(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The models in all pairs, or in any if no model is in all."""
    common = set(pairs[0]).intersection(*pairs)
    return sorted(common or {role for pair in pairs for role in pair})


def _differences(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> str:
    """Settings that fine-tuning does not change, if a model's differ from the pretrained one's."""
    names = ("rope_theta", "rope_parameters", "rms_norm_eps", "max_position_embeddings", "vocab_size")
    different = [
        f"{name} {config[name]} instead of {pretrained[name]}"
        for name in names
        if name in config and name in pretrained and config[name] != pretrained[name]
    ]
    return f" ({', '.join(different)})" if different else ""


def _group_record(figures: GroupFigures) -> dict[str, Any]:
    def rounded(of: ModelFigures | PairFigures) -> dict[str, float]:
        return {name: float(f"{value:.6g}") for name, value in vars(of).items() if value is not None}

    return {
        "values": figures.values,
        "models": {role: rounded(of) for role, of in figures.models.items()},
        "pairs": {" ".join(pair): rounded(of) for pair, of in figures.pairs.items()},
    }


def _root_of_ratio(square: float, whole: float) -> float | None:
    return sqrt(square / whole) if whole else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
