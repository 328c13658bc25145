"""Statistics of whole models or tensors that a method declares, found in passes before the first block is merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS, is_vocabulary_matrix
from model_merging_methods.largest_magnitudes import LargestOf
from model_merging_methods.method import Tensors, Value

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What the passes found, by the statistic's name: numbers of the whole model, and of each tensor."""

    of_model: Mapping[str, Any] = field(default_factory=dict)
    of_tensor: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def at(self, name: str) -> dict[str, Any]:
        """The statistics that count for one tensor."""
        return {**self.of_model, **self.of_tensor.get(name, {})}

    def plus(self, other: Statistics) -> Statistics:
        of_tensor = {
            name: {**self.of_tensor.get(name, {}), **other.of_tensor.get(name, {})}
            for name in (*self.of_tensor, *(name for name in other.of_tensor if name not in self.of_tensor))
        }
        return Statistics({**self.of_model, **other.of_model}, of_tensor)


class Passes(Protocol):
    """The passes over a merge's models that statistics are found with. Their results are the same for any number of
    threads and any block size."""

    merged_names: Sequence[str]
    number_of_models: int

    def numel(self, name: str) -> int: ...

    def options(self, name: str) -> Mapping[str, Value]:
        """The options of the method's formula for one tensor."""

    def magnitude_thresholds(
        self, names: Sequence[str], ranks: Sequence[int], with_signs: bool = False
    ) -> tuple[list[float], int]:
        """For each model the rank-th smallest |δ| over some tensors together (0 for rank 0), after the mask. And,
        `with_signs`, the sum over all positions of the sign of Σi τi, where τi is δi where |δi| is at least that."""

    def largest_of_tensors(self, wanted: Mapping[str, Sequence[LargestOf]]) -> dict[str, list[tuple[float, int]]]:
        """For each tensor the smallest of a model's `number` largest |δ|, after the mask; and, of the values equal to
        it, the flat index of the last that counts, because of equal ones the first count."""

    def change_counts(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """For each tensor and model at how many positions it and others, and it alone, have |δ|, after the mask, above
        the option `epsilon`: float64 [K, 2]."""

    def order_statistics(
        self,
        names: Sequence[str],
        values: Callable[[Tensors], Tensor],
        ranks: Sequence[Sequence[int]],
        found: Statistics,
    ) -> list[list[float]]:
        """For each row of `values` (float32 [rows, n]) its ranks-th smallest numbers over all tensors together, counted
        from 0."""


@dataclass(frozen=True)
class TrimThresholds:
    """For trimming the share `param_value_mask_rate` of each task vector, over the whole model or `by_tensor`.

    trim_thresholds: ti, the k-th smallest |δi|, k = int(n · rate) (0 for k = 0). majority_sign: the sign (+1, −1 or 0)
    of the sum over all positions of the elected signs.
    """

    by_tensor: bool = False
    depends_on: ClassVar[tuple[str, ...]] = ("param_value_mask_rate",)

    def find(self, passes: Passes, options: Mapping[str, Value], found: Statistics) -> Statistics:
        if not self.by_tensor:
            return Statistics(self._of(passes, passes.merged_names, options))
        return Statistics(
            of_tensor={name: self._of(passes, [name], passes.options(name)) for name in passes.merged_names}
        )

    def _of(self, passes: Passes, names: Sequence[str], options: Mapping[str, Value]) -> dict[str, Any]:
        rank = int(sum(map(passes.numel, names)) * options["param_value_mask_rate"])
        thresholds, signs = passes.magnitude_thresholds(names, [rank] * passes.number_of_models, with_signs=True)
        return {"trim_thresholds": thresholds, "majority_sign": (signs > 0) - (signs < 0)}


@dataclass(frozen=True)
class LargestOfTensor:
    """For keeping exactly the max(1, int(density · n)) largest |δi| of each tensor, of equal ones the first.

    kept: for each model [t, last]: values above t are kept, and those equal to t up to position `last`.
    """

    by_tensor: ClassVar[bool] = True
    depends_on: ClassVar[tuple[str, ...]] = ("density",)

    def find(self, passes: Passes, options: Mapping[str, Value], found: Statistics) -> Statistics:
        kept, wanted = {}, {}
        for name in passes.merged_names:
            n = passes.numel(name)
            numbers = [n if d >= 1 else 0 if d <= 0 else max(1, int(d * n)) for d in passes.options(name)["density"]]
            kept[name] = {"kept": [[-1.0 if number == n else inf, -1] for number in numbers]}
            wanted[name] = [LargestOf(model, number) for model, number in enumerate(numbers) if 0 < number < n]
        for name, largest in passes.largest_of_tensors(wanted).items():
            for one, threshold_and_last in zip(wanted[name], largest, strict=True):
                kept[name]["kept"][one.model] = list(threshold_and_last)
        return Statistics(of_tensor=kept)


@dataclass(frozen=True)
class LargestOfModel:
    """largest_threshold: for each model the k-th largest |δi| over all tensors together except the input embeddings,
    k = int(sparsity · n); infinity for k = 0, and for input and output embeddings, of which nothing is kept."""

    by_tensor: ClassVar[bool] = False
    depends_on: ClassVar[tuple[str, ...]] = ("sparsity",)

    def find(self, passes: Passes, options: Mapping[str, Value], found: Statistics) -> Statistics:
        names = [name for name in passes.merged_names if not name.endswith(INPUT_EMBEDDINGS)]
        n = sum(map(passes.numel, names))
        number = int(options["sparsity"] * n)
        nothing = {"largest_threshold": [inf] * passes.number_of_models}
        if number == 0:
            return Statistics(nothing)
        thresholds, _ = passes.magnitude_thresholds(names, [n - number + 1] * passes.number_of_models)
        kept_as_base = filter(is_vocabulary_matrix, passes.merged_names)
        return Statistics({"largest_threshold": thresholds}, dict.fromkeys(kept_as_base, nothing))
