"""Order statistics of the magnitudes of one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LargestOf(NamedTuple):
    """The `number` largest magnitudes of a model's n values, 1 to n. `ties` as in `method.Largest`."""

    model: int
    number: int
    ties: str = "first"


def kth_smallest(magnitudes: Tensor, rank: int) -> float:
    """The rank-th smallest of non-negative float32 values, counted from 1."""
    flat = magnitudes.flatten()
    if flat.device.type != "cpu":
        return flat.kthvalue(rank).values.item()
    from model_merging_methods.kernels import selection

    return float(selection.kth_smallest(flat.numpy(), rank))


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """Which values are the `count` largest (bool). Of equal values those with lower flat indices count as larger."""
    if count <= 0:
        return magnitudes < 0
    if count >= magnitudes.numel():
        return magnitudes >= 0
    threshold = kth_smallest(magnitudes, magnitudes.numel() - count + 1)
    flat = magnitudes.flatten()
    selected = flat > threshold
    if flat.device.type == "cpu":
        from model_merging_methods.kernels import selection

        selection.mark_largest(flat.numpy(), threshold, count, selected.numpy())
    else:
        equal = (flat == threshold).nonzero().squeeze(1)
        selected[equal[: count - int(selected.sum())]] = True
    return selected.view_as(magnitudes)


def smallest_of_largest(magnitudes: Tensor, count: int) -> tuple[float, int]:
    """The smallest of the `count` largest values, 1 to n, and the flat index of the last of them that equals it."""
    threshold = kth_smallest(magnitudes, magnitudes.numel() - count + 1)
    flat = magnitudes.flatten()
    equal = (flat == threshold).nonzero().squeeze(1)
    return threshold, int(equal[count - int((flat > threshold).sum()) - 1])
