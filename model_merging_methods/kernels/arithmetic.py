"""Block arithmetic on the CPU, using the compiled kernels, and the choice between it and torch.

`CompiledArithmetic` and `TorchArithmetic` have the same methods, which several threads may call at once. Each returns a
code, alone or first: 0, or a bit for each model with values that are not finite (the first for the pretrained one).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.kernels.block_kernels import (
    AVERAGE_MERGING,
    MAGNITUDE_MASK,
    NO_MASK,
    RANDOM_MASK,
    TASK_ARITHMETIC,
    TIES_MERGING,
    Brackets,
    KernelPlan,
    StoredBlock,
    Sums,
    Undecided,
    count_block,
    load_magnitudes,
    merge_block,
)
from model_merging_methods.kernels.magnitude_thresholds import EVERYWHERE, BlockCounts, ThresholdSearch
from model_merging_methods.kernels.stored_dtypes import F16, F32
from model_merging_methods.merge_request import Mask, MergeParameters
from model_merging_methods.merging_methods import Coefficients
from utils.errors import UserError

if TYPE_CHECKING:
    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

COMPILED_METHODS = {
    "average_merging": AVERAGE_MERGING,
    "task_arithmetic": TASK_ARITHMETIC,
    "ties_merging": TIES_MERGING,
}
_MASKS = {"random": RANDOM_MASK, "magnitude": MAGNITUDE_MASK}


def choose_device(device: str) -> str:
    """cpu or cuda, for one of `merge_request.DEVICES`: auto is cuda if there is a GPU.

    Raises UserError for cuda without a GPU.
    """
    if device == "cpu":
        return device
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    return "cuda" if has_gpu else "cpu"


def open_arithmetic(device: str, parameters: MergeParameters, models: int) -> "CompiledArithmetic | TorchArithmetic":
    """The arithmetic of a merge of `models` fine-tuned models on a device, cpu or cuda. A method without a compiled
    kernel uses its formula."""
    if device == "cpu" and parameters.method in COMPILED_METHODS:
        return CompiledArithmetic(parameters, models)

    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

    return TorchArithmetic(parameters, models, device)


class CompiledArithmetic:
    """The compiled kernels, for a merge of `models` fine-tuned models."""

    def __init__(self, parameters: MergeParameters, models: int):
        self._parameters = parameters
        self._models = models
        self._plan = lru_cache(self._make_plan)

    def room(self, rows: int, size: int) -> np.ndarray:
        """Memory for stored blocks: uint8 [rows, size]."""
        return np.empty((rows, size), np.uint8)

    def merge(
        self, coefficients: Coefficients, block: StoredBlock, output_dtype: int, output: np.ndarray, sums: Sums
    ) -> int:
        """Merge a block into `output` (bytes of the dtype with that code), adding to `sums`. Returns −1 if a merged
        value does not fit that dtype."""
        return merge_block(self._plan(coefficients), block, output_dtype, output, sums)

    def compare(self, block: StoredBlock, sums: Sums) -> int:
        """Add a block's unmasked models to `sums`."""
        return merge_block(self._plan(Coefficients()), block, F32, np.empty(0, np.uint8), sums)

    def magnitudes(self, block: StoredBlock, masked: bool) -> tuple[int, np.ndarray]:
        """|x| (float32 [K, size]) of the masked models' task vectors if `masked`, else of the values that the mask is
        applied to."""
        magnitudes = np.empty((self._models, block.size), np.float32)
        return load_magnitudes(self._plan(Coefficients()), block, masked, magnitudes), magnitudes

    def count(self, block: StoredBlock, brackets: Brackets, masked: bool, room: Undecided) -> tuple[int, BlockCounts]:
        """Compare these magnitudes with brackets. The undecided values are put into `room`."""
        counts = np.zeros((self._models, 2), np.int64)
        plan = self._plan(Coefficients())
        not_finite, signs, found, shared = count_block(plan, block, brackets, masked, counts, room)
        return not_finite, BlockCounts(counts, room, signs, found, shared)

    def _make_plan(self, coefficients: Coefficients) -> KernelPlan:
        parameters, mask = self._parameters, self._parameters.mask
        ratios = coefficients.ratios
        divisor = 1 - mask.weight_mask_rate if mask and mask.use_weight_rescale and mask.weight_mask_rate != 1 else 1
        with np.errstate(over="ignore"):  # infinity: the merged values will not fit
            scaling_coefficient = np.float32(coefficients.scaling_coefficient)
        return KernelPlan(
            method=COMPILED_METHODS[parameters.method],
            reads_pretrained=parameters.reads_pretrained,
            has_ratios=ratios is not None,
            ratios=self._per_model(ratios or [1] * self._models),
            ones=np.ones(self._models, np.float32),
            scaling_coefficient=scaling_coefficient,
            trim_thresholds=self._per_model(coefficients.trim_thresholds or [0] * self._models),
            majority_sign=np.float32(coefficients.majority_sign),
            mask=_MASKS[mask.mask_strategy] if mask else NO_MASK,
            masks_deltas=mask is not None and mask.weight_format == "delta_weight",
            mask_rate=float(mask.weight_mask_rate) if mask else 0.0,
            divisor=np.float32(divisor),
        )

    def _per_model(self, values: Sequence[float]) -> np.ndarray:
        return np.array(values, np.float32)


def compile_kernels() -> None:
    """Compile every kernel that a merge may need. They are kept on the disk, so this happens once per machine."""
    plan = CompiledArithmetic(MergeParameters("ties_merging", mask=Mask()), 2)
    block = StoredBlock(
        0, 1, plan.room(3, 2), np.full(3, F16, np.int64), np.zeros(2, np.uint64), np.zeros(2, np.float32)
    )
    block.stored[:] = 0
    sums = Sums.of(np.zeros(Sums.width(2)), 2)
    plan.merge(Coefficients(), block, F16, np.empty(2, np.uint8), sums)
    plan.compare(block, sums)
    plan.magnitudes(block, True)
    search = ThresholdSearch([1, 1], [EVERYWHERE, EVERYWHERE], with_signs=True)
    undecided = Undecided(
        *(np.empty(2, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8)), np.empty((1, 2), np.float32)
    )
    search.add(plan.count(block, search.brackets, True, undecided)[1])
