"""What the kernels get: a merge's parameters as numbers, the models' stored blocks, and room for sums."""

from typing import NamedTuple

import numpy as np

# Methods and masks as codes.
AVERAGE_MERGING, TASK_ARITHMETIC, TIES_MERGING, TIES_PER_TENSOR, LINEAR = range(5)
CONSENSUS_TA, LOCALIZE_AND_STITCH, MAGMAX, NEARSWAP, RAM, RAMPLUS_TL = range(5, 11)
NO_MASK, RANDOM_MASK, MAGNITUDE_MASK = range(3)
MASK_NUMBERS = 5  # of a parameter and model, see `StoredBlock`


class KernelPlan(NamedTuple):
    """A merge's parameters for the kernels. Arrays (float32; `mask_rates` float64, `lasts` int64) have one entry per
    fine-tuned model; without M3 or weights, `ratios` are ones. The sum is divided by `divisor`. `numbers` (float32) are
    those of a method that has none of the others."""

    method: int
    reads_pretrained: bool
    has_ratios: bool
    ratios: np.ndarray
    ones: np.ndarray
    divisor: np.float32
    scaling_coefficient: np.float32
    trim_thresholds: np.ndarray
    majority_sign: np.float32
    lasts: np.ndarray
    normalizes: bool
    elects_by_count: bool
    numbers: np.ndarray
    mask: int
    masks_deltas: bool
    rounds_masked: bool
    mask_rates: np.ndarray
    divisors: np.ndarray


class StoredBlock(NamedTuple):
    """The same stretch of a parameter in all models: `size` values from position `start` on.

    stored: their bytes, one row per model, the pretrained one's first; dtypes: their codes. For the masks of this
    parameter, one per fine-tuned model: mask_keys (uint64), and mask_numbers, float64 [K, 5]. Kept are magnitudes above
    the first number, and at it up to the position in the second; of these dropped are those above the third, and at it
    up to the fourth. The fifth multiplies the survivors.
    """

    start: int
    size: int
    stored: np.ndarray
    dtypes: np.ndarray
    mask_keys: np.ndarray
    mask_numbers: np.ndarray


class Sums(NamedTuple):
    """Sums over positions, float64, where x is δ, or θ if the pretrained model is not read.

    whole, shape [2]: Σ θ0², the number of positions.
    models, shape [K, 4]: Σ x²; the numbers of x that are 0, that the mask keeps, that trimming keeps.
    pairs, shape [K, K, 4], for i < j: Σ xi xj and the number of opposite signs; for weights Σ (xi − xj)² and the number
    of equal ones.
    """

    whole: np.ndarray
    models: np.ndarray
    pairs: np.ndarray

    @staticmethod
    def width(models: int) -> int:
        """How many numbers the sums of K models have."""
        return 2 + 4 * models + 4 * models * models

    @staticmethod
    def of(numbers: np.ndarray, models: int) -> "Sums":
        """A view of `width` numbers (float64) as the sums of K models."""
        pairs = 2 + 4 * models
        return Sums(numbers[:2], numbers[2:pairs].reshape(models, 4), numbers[pairs:].reshape(models, models, 4))
