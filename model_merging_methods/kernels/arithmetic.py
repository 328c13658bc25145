"""Block arithmetic on the CPU, using the compiled kernels, and the choice between it and torch.

`CompiledArithmetic` and `TorchArithmetic` have the same methods, which several threads may call at once. Each returns a
code, alone or first: 0, or a bit for each model with values that are not finite (the first for the pretrained one).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from model_merging_methods.kernels.block_kernels import load_masked, merge_block, merge_values
from model_merging_methods.kernels.chunks import load_magnitudes
from model_merging_methods.kernels.counting_kernels import (
    Brackets,
    Undecided,
    count_block,
    count_histogram,
    note_candidates,
    place_of_equal,
)
from model_merging_methods.kernels.kernel_plan import (
    AVERAGE_MERGING,
    CONSENSUS_TA,
    LINEAR,
    LOCALIZE_AND_STITCH,
    MAGMAX,
    MAGNITUDE_MASK,
    MASK_NUMBERS,
    NEARSWAP,
    NO_MASK,
    RAM,
    RAMPLUS_TL,
    RANDOM_MASK,
    TASK_ARITHMETIC,
    TIES_MERGING,
    TIES_PER_TENSOR,
    KernelPlan,
    StoredBlock,
    Sums,
)
from model_merging_methods.kernels.magnitude_thresholds import EVERYWHERE, BlockCounts, ThresholdSearch
from model_merging_methods.kernels.product_kernels import count_changes, gram_block, mask_sums
from model_merging_methods.kernels.selection import kth_of_counted
from model_merging_methods.kernels.stored_dtypes import F16, F32
from model_merging_methods.kernels.stored_values import encode
from model_merging_methods.kernels.tensor_search import Table
from model_merging_methods.merge_parameters import DEVICES, Mask, MergeParameters, mask_of, parameters_of, per_model
from model_merging_methods.method import Sees, Tensors
from model_merging_methods.methods import linear, ramplus_tl, task_arithmetic
from utils.errors import UserError

if TYPE_CHECKING:
    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

COMPILED_METHODS = {
    "average_merging": AVERAGE_MERGING,
    "consensus_ta": CONSENSUS_TA,
    "linear": LINEAR,
    "localize_and_stitch": LOCALIZE_AND_STITCH,
    "magmax": MAGMAX,
    "nearswap": NEARSWAP,
    "ram": RAM,
    "ramplus_tl": RAMPLUS_TL,
    "task_arithmetic": TASK_ARITHMETIC,
    "ties_merging": TIES_MERGING,
    "ties_per_tensor": TIES_PER_TENSOR,
    "ties_per_tensor_mergellm": TIES_MERGING,
}
# The numbers of the kernels that take others than weights and thresholds, from the formula's options and the tensor's.
_NUMBERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]]] = {
    "consensus_ta": lambda options, found: (options["k"], *options["mask_lambda"]),
    "localize_and_stitch": lambda options, found: found.get("largest_threshold", ()),
    "nearswap": lambda options, found: (options["t"],),
    "ram": lambda options, found: (options["epsilon"],),
    "ramplus_tl": lambda options, found: (
        options["epsilon"],
        *ramplus_tl.amplification(found.get("change_counts", ()), **options),
    ),
}
_DIVISORS = {"linear": linear.divisor, "task_arithmetic": task_arithmetic.divisor}
_PIECE = 1 << 15  # values of each model that a formula in torch gets at once


@dataclass(frozen=True, eq=False)
class TensorNumbers:
    """Everything that a formula gets of one tensor, except its values.

    ratios: M3's w1 … wK, the coefficients of a GRAM method, or None. statistics: `Statistics.at` this tensor.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    ratios: tuple[float, ...] | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)


NO_NUMBERS = TensorNumbers()


def masks_in_blocks(mask: Mask | None) -> bool:
    """Whether a mask works on any stretch of a tensor: DARE's and those by magnitude."""
    return mask is None or mask.declared.sees is Sees.BLOCK or mask.declared.keeps is not None


def sees_blocks(parameters: MergeParameters) -> bool:
    """Whether the merge works on any stretch of a tensor. Otherwise it needs whole tensors."""
    method = parameters.declared
    by_block = method.sees is Sees.BLOCK or (method.sees is Sees.GRAM and method.vectors(parameters.values) == "tensor")
    return by_block and masks_in_blocks(parameters.mask)


def mask_rates(mask: Mask | None, models: int) -> tuple[float, ...]:
    """The drop rate of each model's mask, 0 for a mask without one."""
    return per_model(mask.values.get("weight_mask_rate", 0.0) if mask else 0.0, models)


def has_kernel(parameters: MergeParameters) -> bool:
    return parameters.declared.sees is Sees.GRAM or parameters.method in COMPILED_METHODS


def choose_device(device: str) -> str:
    """cpu or cuda, for one of `merge_parameters.DEVICES`: auto is cuda if there is a GPU.

    Raises UserError for other devices, and for cuda without a GPU.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device}: choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return device
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    return "cuda" if has_gpu else "cpu"


def open_arithmetic(device: str, parameters: MergeParameters, models: int) -> "CompiledArithmetic | TorchArithmetic":
    """The arithmetic of a merge of `models` fine-tuned models on a device, cpu or cuda."""
    if device == "cpu":
        return CompiledArithmetic(parameters, models)

    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

    return TorchArithmetic(parameters, models, device)


class CompiledArithmetic:
    """The compiled kernels, for a merge of `models` fine-tuned models. A method without a kernel uses its formula."""

    def __init__(self, parameters: MergeParameters, models: int):
        self._parameters = parameters
        self._models = models
        self._adds_task_vectors = parameters.declared.reads_base_with(parameters.values)
        self._plan = lru_cache(maxsize=None)(self._make_plan)

    def room(self, rows: int, size: int) -> np.ndarray:
        """Memory for stored blocks: uint8 [rows, size]."""
        return np.empty((rows, size), np.uint8)

    def merge(
        self, numbers: TensorNumbers, block: StoredBlock, output_dtype: int, output: np.ndarray, sums: Sums
    ) -> int:
        """Merge a block into `output` (bytes of the dtype with that code), adding to `sums`. Returns −1 if a merged
        value does not fit that dtype."""
        if not has_kernel(self._parameters):
            return self._merge_by_formula(numbers, block, output_dtype, output, sums)
        return merge_block(self._plan(numbers), block, output_dtype, output, sums)

    def merge_values(
        self, numbers: TensorNumbers, start: int, base: np.ndarray, models: np.ndarray, are_deltas: bool
    ) -> np.ndarray:
        """The merged values, float32 [size], from position `start` of a tensor on: of θ0 [size] and the models
        [K, size], their task vectors if `are_deltas`, else their weights. For a method with a kernel."""
        merged = np.empty_like(base)
        merge_values(self._plan(numbers), start, base, models, are_deltas, merged)
        return merged

    def _merge_by_formula(
        self, numbers: TensorNumbers, block: StoredBlock, output_dtype: int, output: np.ndarray, sums: Sums
    ) -> int:
        """`merge` by the method's formula in torch, in pieces that stay in a core's cache."""
        formula = self._formula(numbers)
        size, not_finite, fits = min(block.size, _PIECE), 0, True
        rows = np.empty((2 * self._models + 1, size), np.float32)
        plan = self._plan(numbers)
        for first in range(0, block.size, size):
            length = min(size, block.size - first)
            not_finite |= load_masked(plan, block, first, length, rows, sums)
            merged = formula(block.start + first, rows[:, :length])
            fits &= encode(merged, output_dtype, first, output)
        return not_finite if not_finite or fits else -1

    def _formula(self, numbers: TensorNumbers) -> Callable[[int, np.ndarray], np.ndarray]:
        """The formula as a function of a first position and of θ0, θ1 … θK, δ1 … δK in rows."""
        import torch

        from model_merging_methods.kernels.torch_arithmetic import merged_values, one_thread

        def merge(start: int, rows: np.ndarray) -> np.ndarray:
            base, *models = torch.from_numpy(rows)
            x = Tensors(
                numbers.name,
                numbers.shape,
                start,
                base,
                models[: self._models],
                models[self._models :] if self._parameters.reads_base else None,
                numbers.ratios,
                numbers.statistics,
            )
            with one_thread():
                return merged_values(self._parameters, x).contiguous().numpy()

        return merge

    def compare(self, block: StoredBlock, sums: Sums) -> int:
        """Add a block's unmasked models to `sums`."""
        return merge_block(self._plan(NO_NUMBERS), block, F32, np.empty(0, np.uint8), sums)

    def magnitudes(self, block: StoredBlock, masked: bool) -> tuple[int, np.ndarray]:
        """|x| (float32 [K, size]) of the masked models' task vectors if `masked`, else of the values that the mask is
        applied to."""
        magnitudes = np.empty((self._models, block.size), np.float32)
        return load_magnitudes(self._plan(NO_NUMBERS), block, masked, magnitudes), magnitudes

    def count(self, block: StoredBlock, brackets: Brackets, masked: bool, room: Undecided) -> tuple[int, BlockCounts]:
        """Compare these magnitudes with brackets. The undecided values are put into `room`."""
        counts = np.zeros((self._models, 2), np.int64)
        plan = self._plan(NO_NUMBERS)
        not_finite, signs, found, shared = count_block(plan, block, brackets, masked, counts, room)
        return not_finite, BlockCounts(counts, room, signs, found, shared)

    def count_histogram(
        self, block: StoredBlock, brackets: Brackets, masked: bool, counts: np.ndarray, histograms: np.ndarray
    ) -> int:
        """Compare the same magnitudes with brackets: adds to each model's row of `counts` (int64 [K, 2]) how many are
        below its bracket and up to its end, and to `histograms` (int64 [K, bins]) those inside."""
        return count_histogram(self._plan(NO_NUMBERS), block, brackets, masked, counts, histograms)

    def place_of_equal(self, block: StoredBlock, masked: bool, model: int, threshold: float, number: int) -> int:
        """The position in a block of the number-th of the same magnitudes of a model that equals a threshold."""
        return place_of_equal(self._plan(NO_NUMBERS), block, masked, model, np.float32(threshold), number)

    def note_candidates(
        self, block: StoredBlock, models: np.ndarray, brackets: Brackets, masked: bool, room: np.ndarray
    ) -> tuple[int, np.ndarray, list[np.ndarray]]:
        """Compare the same magnitudes with brackets, bracket s for model `models[s]`: int64 [S, 3], how many are below,
        inside, and up to the end; and the bins of those inside, in any order, in `room` (int32 [S, size or more])."""
        counts = np.empty((len(models), 3), np.int64)
        code = note_candidates(self._plan(NO_NUMBERS), block, models, brackets, masked, counts, room)
        return code, counts, [row[:found] for row, found in zip(room, counts[:, 1].tolist(), strict=False)]

    def mask_sums(self, block: StoredBlock, sums: np.ndarray) -> int:
        """Add to `sums`, float64 [K, 2], the magnitudes that the mask is applied to, and those that it keeps."""
        return mask_sums(self._plan(NO_NUMBERS), block, sums)

    def gram(self, block: StoredBlock, gram: np.ndarray) -> int:
        """Add the inner products of a block's masked task vectors, or weights, to `gram`: float64 [K, K]."""
        return gram_block(self._plan(NO_NUMBERS), self._adds_task_vectors, block, gram)

    def count_changes(self, block: StoredBlock, counts: np.ndarray) -> int:
        """Add RAM+'s counts of a block's changes to `counts`: float64 [K, 2]."""
        return count_changes(self._plan(NO_NUMBERS), block, counts)

    def _make_plan(self, numbers: TensorNumbers) -> KernelPlan:
        parameters, values = self._parameters, self._parameters.values
        mask = parameters.mask if masks_in_blocks(parameters.mask) else None  # others are applied to whole tensors
        rates = mask_rates(mask, self._models)
        rescales = mask is not None and mask.values.get("use_weight_rescale", False)
        default = TASK_ARITHMETIC if self._adds_task_vectors else AVERAGE_MERGING
        ratios = numbers.ratios
        if ratios is None and "weight" in values:
            ratios = per_model(values["weight"], self._models)
        weights = ratios or (1.0,) * self._models
        divides = values.get("normalize") and parameters.method in _DIVISORS
        # TIES in each tensor by itself: a threshold, and the position of the last value at it that is kept.
        kept = numbers.statistics.get("kept", [[threshold, -1] for threshold in self._trim_thresholds(numbers)])
        thresholds, lasts = zip(*kept, strict=True)
        with np.errstate(over="ignore"):  # infinity: the merged values will not fit
            scaling_coefficient = np.float32(values.get("scaling_coefficient", 1.0))
        return KernelPlan(
            method=COMPILED_METHODS.get(parameters.method, default),
            reads_pretrained=parameters.reads_base,
            has_ratios=ratios is not None,
            ratios=self._per_model(weights),
            ones=np.ones(self._models, np.float32),
            divisor=np.float32(_DIVISORS[parameters.method](weights) if divides else 1),
            scaling_coefficient=scaling_coefficient,
            trim_thresholds=self._per_model(thresholds),
            majority_sign=np.float32(numbers.statistics.get("majority_sign", 0)),
            lasts=np.array(lasts, np.int64),
            normalizes=bool(values.get("normalize")),
            elects_by_count=values.get("elect_by") == "count",
            numbers=self._per_model(self._numbers(numbers)),
            mask=NO_MASK if mask is None else RANDOM_MASK if mask.declared.keeps is None else MAGNITUDE_MASK,
            masks_deltas=mask is not None and mask.masks_deltas,
            rounds_masked=mask is not None and mask.declared.rounds(mask.values),
            mask_rates=np.array(rates, np.float64),
            divisors=self._per_model([1 - rate if rescales and rate != 1 else 1 for rate in rates]),
        )

    def _trim_thresholds(self, numbers: TensorNumbers) -> Sequence[float]:
        return numbers.statistics.get("trim_thresholds", (0.0,) * self._models)

    def _numbers(self, numbers: TensorNumbers) -> Sequence[float]:
        if self._parameters.method not in _NUMBERS:
            return ()
        options = self._parameters.formula_options(self._models)
        return _NUMBERS[self._parameters.method](options, numbers.statistics)

    def _per_model(self, values: Sequence[float]) -> np.ndarray:
        return np.array(values, np.float32)


def compile_kernels() -> None:
    """Compile the kernels of merges in blocks. They are kept on the disk, so this happens once per machine."""
    plan = CompiledArithmetic(parameters_of("ties_merging", mask=mask_of()), 2)
    block = StoredBlock(
        0, 1, plan.room(3, 2), np.full(3, F16, np.int64), np.zeros(2, np.uint64), np.zeros((2, MASK_NUMBERS))
    )
    block.stored[:] = 0
    sums = Sums.of(np.zeros(Sums.width(2)), 2)
    plan.merge(NO_NUMBERS, block, F16, np.empty(2, np.uint8), sums)
    plan.compare(block, sums)
    plan.gram(block, np.zeros((2, 2)))
    plan.mask_sums(block, np.zeros((2, 2)))
    with_changes = CompiledArithmetic(parameters_of("ramplus_tl", mask=mask_of()), 2)
    with_changes.count_changes(block, np.zeros((2, 2)))
    plan.place_of_equal(block, True, 0, 0.0, 1)
    plan.magnitudes(block, True)
    search = ThresholdSearch([1, 1], [EVERYWHERE, EVERYWHERE], with_signs=True)
    plan.count_histogram(block, search.brackets, True, np.zeros((2, 2), np.int64), search.new_histograms())
    undecided = Undecided(
        *(np.empty(2, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8)), np.empty((1, 2), np.float32)
    )
    search.add(plan.count(block, search.brackets, True, undecided)[1])
    plan.note_candidates(block, np.zeros(1, np.int64), search.brackets, True, np.empty((1, 1), np.int32))
    Table.of(np.zeros(1, np.int32))
    kth_of_counted(*np.ones((2, 1), np.int32), 1)
