"""Compiled loops of methods that work position by position: their formulas, value for value.

Each takes θ0 (float32 [n]), the weights and the task vectors ([K, n]), the position of the first value in its tensor,
and the numbers of its formula as float32, and fills `merged` ([n]). Inner loops run over the positions, so that the
compiler turns them into vector instructions; compiled array notation of the same formulas takes 2 to 29 times as long.
A method without a loop here uses its formula in torch, which is slower.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from model_merging_methods.kernels.block_kernels import ONE, ZERO, exact

if TYPE_CHECKING:
    from model_merging_methods.kernels.arithmetic import TensorNumbers

Arguments = tuple[Any, ...]


@exact
def magmax(base, weights, deltas, start, merged, scaling_coefficient):
    for j in range(merged.size):
        merged[j] = deltas[0, j]
    for i in range(1, deltas.shape[0]):
        for j in range(merged.size):
            merged[j] = deltas[i, j] if abs(deltas[i, j]) >= abs(merged[j]) else merged[j]
    for j in range(merged.size):
        merged[j] = base[j] + scaling_coefficient * merged[j]


@exact
def nearswap(base, weights, deltas, start, merged, t):
    for j in range(merged.size):
        w = t * (ONE / max(abs(base[j] - weights[0, j]), np.float32(1e-6)))  # as torch divides a number
        w = min(max(w, ZERO), ONE)
        merged[j] = w * weights[0, j] + (ONE - w) * base[j]


@exact
def ram(base, weights, deltas, start, merged, epsilon):
    counts = np.zeros(merged.size, np.float32)
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            counts[j] += ONE if abs(deltas[i, j]) > epsilon else ZERO
    merged[:] = ZERO
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            delta = deltas[i, j] if abs(deltas[i, j]) > epsilon else ZERO
            merged[j] += delta / max(counts[j], ONE)
    for j in range(merged.size):
        merged[j] = base[j] + merged[j]


@exact
def consensus_ta(base, weights, deltas, start, merged, k, mask_lambda, scaling_coefficient):
    votes = np.zeros(merged.size, np.float32)
    merged[:] = deltas[0]
    for i in range(1, deltas.shape[0]):
        for j in range(merged.size):
            merged[j] += deltas[i, j]
    for i in range(deltas.shape[0]):
        own = mask_lambda[i]
        for j in range(merged.size):
            votes[j] += ONE if abs(deltas[i, j]) > abs(merged[j] - deltas[i, j]) * own else ZERO
    for j in range(merged.size):
        kept = merged[j] if votes[j] >= k else ZERO
        merged[j] = base[j] + scaling_coefficient * kept


@exact
def localize_and_stitch(base, weights, deltas, start, merged, thresholds):
    overlap = np.zeros(merged.size, np.float32)
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            overlap[j] += ONE if abs(deltas[i, j]) >= thresholds[i] else ZERO
    merged[:] = ZERO
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            share = (ONE if abs(deltas[i, j]) >= thresholds[i] else ZERO) / max(overlap[j], ONE)
            merged[j] += share * deltas[i, j]
    for j in range(merged.size):
        merged[j] = base[j] + merged[j]


def _consensus_ta(options: Mapping[str, Any], found: "TensorNumbers") -> Arguments:
    numbers = np.float32(options["k"]), _array(options["mask_lambda"])
    return (*numbers, np.float32(options["scaling_coefficient"]))


def _localize_and_stitch(options: Mapping[str, Any], found: "TensorNumbers") -> Arguments:
    return (_array(found.statistics["largest_threshold"]),)


def _array(numbers: Any) -> np.ndarray:
    return np.array(numbers, np.float32)


# By method: its loop, and the loop's numbers from the formula's options and the tensor's numbers.
LOOPS: dict[str, tuple[Callable[..., None], Callable[[Mapping[str, Any], "TensorNumbers"], Arguments]]] = {
    "consensus_ta": (consensus_ta, _consensus_ta),
    "localize_and_stitch": (localize_and_stitch, _localize_and_stitch),
    "magmax": (magmax, lambda options, found: (np.float32(options["scaling_coefficient"]),)),
    "nearswap": (nearswap, lambda options, found: (np.float32(options["t"]),)),
    "ram": (ram, lambda options, found: (np.float32(options["epsilon"]),)),
}
