"""Merging methods and masks: their declarations, and the options that follow from them.

A method is one file in `methods/`, a mask one file in `masks/`, both found by name. The file holds a decorated
function. Its keyword arguments are the options: parser, checks, run names, records, model cards, searches and
docs/methods.md loop over them. `docs/add_a_method.md` shows two examples.

The modules of methods and masks import torch inside functions only: it takes seconds, and merges by compiled kernels do
without it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from model_merging_methods.checkpoints.vocabulary_matrices import is_vocabulary_matrix
from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# The type of an option that has one number per fine-tuned model. A formula gets a tuple of K numbers.
PerModel: TypeAlias = tuple[float, ...]
Value: TypeAlias = float | int | bool | str | PerModel


# Reads θ0, θ1 … θK anew, strip by strip: float32 [rows, n], which may be overwritten.
Strips: TypeAlias = "Callable[[], Iterator[Sequence[np.ndarray]]]"


class Sees(Enum):
    """How much of a parameter a formula must see at once.

    GRAM: the inner products of one parameter's vectors; it returns a ratio for each model.
    BLOCK: any stretch of one parameter, and the declared statistics.
    TENSOR: one whole parameter.
    """

    GRAM = "inner products"
    BLOCK = "any stretch"
    TENSOR = "a whole tensor"


@dataclass(frozen=True)
class About:
    """What an option means, and the values that it takes: numbers from `low` to `high`, or one of `choices`."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """An option of a method or mask. `type` is float, int, bool or str; `default` is None for a required one."""

    name: str
    type: type
    default: Value | None
    about: About
    is_per_model: bool

    def check(self, value: Value) -> None:
        """Raise UserError for a value outside the option's range."""
        for one in value if isinstance(value, tuple) else (value,):
            if self.about.choices:
                if one not in self.about.choices:
                    raise UserError(f"--{self.name} {one}: choose one of {', '.join(self.about.choices)}")
            elif not isinstance(one, bool) and not self.about.low <= one <= self.about.high:
                raise UserError(f"--{self.name} {one}: give {self.range}")
            elif not isinstance(one, bool) and not math.isfinite(one):
                raise UserError(f"--{self.name} {one}: give a finite number")

    @property
    def range(self) -> str:
        """The values in words, such as "a number between 0 and 1"."""
        kind = "a whole number" if self.type is int else "a number"
        low, high = self.about.low, self.about.high
        if math.isinf(low) and math.isinf(high):
            return f"{kind}"
        if math.isinf(high):
            return f"{kind} from {low:g} on"
        return f"{kind} between {low:g} and {high:g}"


@dataclass(frozen=True)
class Tensors:
    """A stretch of one parameter of all models, as a BLOCK formula sees it: float32, positions `start` … of the
    flattened parameter, of this `shape`.

    base: θ0. weights and task_vectors: θi and δi as far as they are known; `finetuned` and `deltas` give both.
    ratios: M3's w1 … wK, or None for the plain method. statistics: those that the method declared, by name.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    base: Tensor
    weights: Sequence[Tensor] | None = None
    task_vectors: Sequence[Tensor] | None = None
    ratios: tuple[float, ...] | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def finetuned(self) -> Sequence[Tensor]:
        """The models' weights θ1 … θK."""
        return [self.base + delta for delta in self.task_vectors] if self.weights is None else self.weights

    @cached_property
    def deltas(self) -> Sequence[Tensor]:
        """The task vectors δi = θi − θ0."""
        return [theta - self.base for theta in self.weights] if self.task_vectors is None else self.task_vectors

    @property
    def number_of_models(self) -> int:
        """K."""
        return len(self.weights if self.task_vectors is None else self.task_vectors)


class Reading(Sequence):
    """Tensors that are read when they are asked for, each time anew."""

    def __init__(self, read: Callable[[int], Tensor], count: int):
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Tensor:
        if not 0 <= place < self._count:
            raise IndexError(place)
        return self._read(place)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._read, range(self._count))  # unlike Sequence's, keeps none of them


@dataclass(frozen=True)
class WholeTensor:
    """One whole parameter of all models, as a TENSOR formula sees it: float32, in its `shape`.

    Each use of `base`, `finetuned[i]` and `deltas[i]` reads the values anew. So only those that a formula holds take
    memory, and it may overwrite them.
    read: the values of θ0 (0) or of θi, or of δi if the second argument says so.
    """

    name: str
    shape: tuple[int, ...]
    number_of_models: int
    read: Callable[[int, bool], Tensor]

    @property
    def base(self) -> Tensor:
        return self.read(0, False)

    @property
    def finetuned(self) -> Sequence[Tensor]:
        return Reading(lambda place: self.read(place + 1, False), self.number_of_models)

    @property
    def deltas(self) -> Sequence[Tensor]:
        return Reading(lambda place: self.read(place + 1, True), self.number_of_models)

    def moved(self, delta: Tensor, scaling_coefficient: float = 1.0) -> Tensor:
        """θ0 + s δ. Overwrites δ."""
        return self.base.add_(delta.mul_(scaling_coefficient))


@dataclass(frozen=True)
class Method:
    """A merging method.

    formula: for BLOCK a function of `Tensors`, for TENSOR of `WholeTensor`, and the options that returns the merged
    values, in the shape of θ0. For GRAM a function of `gram`, the float64 products [..., K, K] of the K models'
    vectors, and the options, that returns K coefficients ci, [..., K]: the result is Σ ci θi, or θ0 + Σ ci δi with
    `reads_base`.
    models: the least and the largest number of fine-tuned models (None: any number).
    reads_base: whether the result depends on θ0, or a function of the options that says so.
    takes_ratios: whether M3's ratios apply. They replace the option `weight` if the method has one.
    takes_mask: whether the models may be masked before.
    memory: for TENSOR, how many float32 values the formula holds at its peak, with what it read and the result, for K
    models of m × n values each: a function of m, n and K.
    in_strips: for TENSOR, the formula on the CPU without a whole tensor: a function of `Strips` and of the number of
    values that yields the merged strips.
    merges: whether a parameter of this name and shape is merged; the others keep the values of θ0.
    vectors: for GRAM, from the options: "tensor" (a parameter is one vector), "rows" or "columns" (each is one).
    check: raises UserError for options, K numbers for one per model, that make no sense together.
    """

    name: str
    formula: Callable[..., Any]
    paper: str
    sees: Sees
    options: Mapping[str, Option]
    models: tuple[int, int | None] = (2, None)
    reads_base: bool | Callable[[Mapping[str, Value]], bool] = True
    takes_ratios: bool = False
    takes_mask: bool = True
    memory: Callable[[int, int, int], float] = lambda m, n, k: (k + 6) * m * n
    statistics: tuple[Any, ...] = ()
    in_strips: Callable[[Strips, int], Iterator[np.ndarray]] | None = None
    merges: Callable[[str, tuple[int, ...]], bool] = lambda name, shape: True
    vectors: Callable[[Mapping[str, Value]], str] = lambda options: "tensor"
    check: Callable[[Mapping[str, Any]], Any] = lambda options: None

    def reads_base_with(self, options: Mapping[str, Value]) -> bool:
        return self.reads_base(options) if callable(self.reads_base) else self.reads_base

    @property
    def numbers_after_statistics(self) -> list[str]:
        """The options whose values no statistic depends on: those that the formula alone uses, if they are numbers."""
        used = {name for statistic in self.statistics for name in statistic.depends_on}
        return [name for name, option in self.options.items() if option.type is float and name not in used]

    @property
    def sees_model(self) -> bool:
        """Whether the formula needs a statistic of the whole model."""
        return any(not statistic.by_tensor for statistic in self.statistics)

    @property
    def summary(self) -> str:
        """The first sentence of the formula's docstring."""
        return summary(self.formula)


def merging_method(*, paper: str, sees: Sees, **declared: Any) -> Callable[[Callable], Method]:
    """Declare a function to be a merging method. `declared` are further fields of `Method`."""

    def declare(formula: Callable) -> Method:
        return Method(formula.__name__, formula, paper, sees, options_of(formula), **declared)

    return declare


@dataclass(frozen=True)
class MaskPlace:
    """The values that a mask is applied to: one model's, of one parameter, from position `start` on.

    key: the 64-bit key of this parameter's random mask (`merge_request.mask_key`).
    """

    shape: tuple[int, ...]
    start: int
    key: int


class Largest(NamedTuple):
    """The `number` largest of a parameter's magnitudes. `ties`: of those equal to the smallest of them "all" count, or
    "none", or the "first", so that the number is exact."""

    number: int
    ties: str = "first"


@dataclass(frozen=True)
class MaskMethod:
    """A mask, applied to each model before they are merged.

    formula: a function of one model's values (float32, of the shape that `sees` says), their `MaskPlace` and the
    options, one number each, that returns the masked values.
    is_random: whether the result depends on the seed.
    keeps: for a mask by magnitude, from the number of a parameter's values and the options: the largest magnitudes that
    are kept, and those among them that are dropped. Such a mask works on any stretch of a parameter.
    restores_sum: whether survivors are multiplied to the sum of magnitudes from before, from the options.
    rounds: whether a masked task vector is added to θ0 and subtracted again, as DARE's code does, from the options.
    in_rows: for a mask that treats each row by itself: masks float32 rows in place, from their `MaskPlace` and the
    options, except for the factor of `restores_sum`. Returns their sums of magnitudes before and after, [r, 2].
    check: raises UserError for options of a model that make no sense together.
    """

    name: str
    formula: Callable[..., Tensor]
    paper: str
    sees: Sees
    options: Mapping[str, Option]
    is_random: bool = False
    keeps: Callable[..., tuple[Largest, Largest]] | None = None
    restores_sum: Callable[[Mapping[str, Value]], bool] = lambda options: False
    rounds: Callable[[Mapping[str, Value]], bool] = lambda options: False
    in_rows: Callable[..., np.ndarray] | None = None
    check: Callable[[Mapping[str, Value]], None] = lambda options: None

    @property
    def summary(self) -> str:
        return summary(self.formula)


def mask_method(*, paper: str, sees: Sees, **declared: Any) -> Callable[[Callable], MaskMethod]:
    """Declare a function to be a mask. `declared` are further fields of `MaskMethod`."""

    def declare(formula: Callable) -> MaskMethod:
        return MaskMethod(formula.__name__, formula, paper, sees, options_of(formula, by_model=True), **declared)

    return declare


def options_of(formula: Callable, by_model: bool = False) -> dict[str, Option]:
    """The options that a formula's keyword arguments declare, by name. `by_model`: any number may differ by model."""
    hints = get_type_hints(formula, localns={"Tensor": Any}, include_extras=True)
    options = {}
    for name, argument in inspect.signature(formula).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint = hints[name]
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{formula.__name__}: the option {name} needs Annotated[type, About(...)]")
        kind, about = get_args(hint)
        default = None if argument.default is argument.empty else argument.default
        is_per_model = kind == PerModel or (by_model and kind is float)
        options[name] = Option(name, float if kind == PerModel else kind, default, about, is_per_model)
    return options


def summary(formula: Callable) -> str:
    """The first sentence of a docstring."""
    return " ".join((inspect.getdoc(formula) or "").split("\n\n")[0].split())


def is_linear_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is the weight of a linear layer of attention or MLP."""
    is_other = is_vocabulary_matrix(name) or any(part in name for part in ("embed", "wpe", "norm"))
    return len(shape) == 2 and name.endswith(".weight") and not is_other
