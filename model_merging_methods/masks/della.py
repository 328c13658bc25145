"""DELLA: drop values at random, small ones more often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, MaskPlace, Sees, mask_method
from model_merging_methods.survivors import keep, restoring_factor
from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def mask_rows(rows: np.ndarray, place: MaskPlace, *, density: float, epsilon: float, rescale: str) -> np.ndarray:
    """Mask float32 rows [r, n] of a parameter in place, from its position `place.start` on, except for the factor that
    restores its sum of magnitudes ("l1"). Returns each row's sum of magnitudes before and after: float64 [r, 2]."""
    import numpy as np

    from model_merging_methods.kernels.ranked_mask import mask_by_rank

    check(density, epsilon)
    key = np.uint64(place.key & (2**64 - 1))
    spread = epsilon if 0 < density < 1 and rows.shape[1] > 1 else 0.0
    step = 2 * spread / max(rows.shape[1] - 1, 1)
    return mask_by_rank(rows, key, place.start, density - spread, step, rescale == "inverse")


@mask_method(
    paper="Deep et al. 2024, arXiv 2406.11617",
    sees=Sees.TENSOR,
    is_random=True,
    in_rows=mask_rows,
    restores_sum=lambda options: options["rescale"] == "l1",
    check=lambda options: check(options["density"], options["epsilon"]),
)
def della(
    values: Tensor,
    place: MaskPlace,
    *,
    density: Annotated[float, About("mean probability of keeping a value", 0, 1)] = 1.0,
    epsilon: Annotated[float, About("how far probabilities go below and above density", 0, 0.5)] = 0.15,
    rescale: Annotated[str, About("how survivors are rescaled", choices=("none", "inverse", "l1"))] = "l1",
) -> Tensor:
    """Drop values at random, with probabilities that fall with the rank of their magnitude in a row.

    density = 1 drops nothing, and 0 everything. "inverse" divides each survivor by its own probability, as in the
    paper. "l1" restores the sum of magnitudes of the parameter, as in mergekit.
    """
    if density >= 1:
        return values
    if density <= 0:
        return values * 0
    check(density, epsilon)
    if values.dim() <= 2 and values.device.type == "cpu":
        import torch

        masked = values.clone(memory_format=torch.contiguous_format)
        rows = masked.view(-1, _length_of_rows(values)).numpy()
        sums = mask_rows(rows, place, density=density, epsilon=epsilon, rescale=rescale)
        return masked.mul_(restoring_factor(*sums.sum(axis=0).tolist())) if rescale == "l1" else masked
    kept, probabilities = draw(values, place, density, epsilon)
    return keep(values, kept, rescale, probabilities)


def check(density: float, epsilon: float) -> None:
    """Raise UserError for probabilities outside 0 and 1."""
    if 0 < density < 1 and (density - epsilon <= 0 or density + epsilon >= 1):
        raise UserError(f"--epsilon {epsilon}: density ± epsilon must be inside 0 and 1, and density is {density}")


def draw(values: Tensor, place: MaskPlace, density: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """Which values are kept, and their probabilities."""
    probabilities = keep_probabilities(values, density, epsilon)
    return uniform_numbers(place, values) < probabilities, probabilities.float()


def _length_of_rows(values: Tensor) -> int:
    return values.shape[min(1, values.dim() - 1)]


def keep_probabilities(values: Tensor, density: float, epsilon: float) -> Tensor:
    """From density − epsilon for the smallest magnitude of a row to density + epsilon for the largest (float64).

    A row runs along axis 1; a one-dimensional tensor is one row. Equal magnitudes rank in the order of their indices.
    A row of one value has no ranks: the value is kept with the probability density.
    """
    axis = min(1, values.dim() - 1)
    if _length_of_rows(values) < 2:
        return values.double() * 0 + density
    ranks = values.abs().argsort(dim=axis, stable=True).argsort(dim=axis)
    return density - epsilon + ranks.double() * (2 * epsilon / (_length_of_rows(values) - 1))


def uniform_numbers(place: MaskPlace, values: Tensor) -> Tensor:
    """Random numbers between 0 and 1 (float64), functions of the mask's key and the position alone."""
    import torch

    from model_merging_methods.kernels.mask_weights import random_words

    positions = torch.arange(place.start, place.start + values.numel(), device=values.device)
    words = random_words(place.key, positions) >> 11 & (2**53 - 1)
    return (words.double() / 2**53).view_as(values)
