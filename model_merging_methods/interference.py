"""The objective of WUDI, Σ |(θ − δi) δi'|² / |δi|², and its minimum in the eigenvectors of C = Σ δi'δi / |δi|².

With D = Σ δi δi'δi / |δi|², its gradient is 2 (θ C − D). A model with δi = 0 has no term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_merging_methods.method import Reading
from model_merging_methods.singular_values import STRIP, as_columns, eigenvectors, gram, in_strips, short_vectors
from model_merging_methods.task_vectors import mean, squared_norm, total

if TYPE_CHECKING:
    from torch import Tensor


def changed(deltas: Sequence[Tensor]) -> Reading:
    """The task vectors that are not 0."""
    places = [place for place, delta in enumerate(deltas) if delta.any()]
    return Reading(lambda place: deltas[places[place]], len(places))


def all_negligible(deltas: Sequence[Tensor]) -> bool:
    """Whether every |δi|² is below 1e-12."""
    return all(squared_norm(delta) < 1e-12 for delta in deltas)


def initial(deltas: Sequence[Tensor], mode: str) -> Tensor:
    """θ to start from: the "sum" or the "mean" of the task vectors, or "zero"."""
    return {"sum": total, "mean": mean, "zero": lambda deltas: deltas[0] * 0}[mode](deltas)


def memory_of_spectrum(m: int, n: int, k: int) -> int:
    """How many float32 values the spectrum and a move along it take (`Method.memory`)."""
    rows = k * m
    if rows < n:
        return max(6 * rows**2, k * m * n + 2 * rows * (n + rows + 3 * min(n, STRIP)))
    return max(8 * n**2, 6 * m * n + 2 * n**2 + 4 * m * min(n, STRIP))


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues e of C, largest first and at least 1e-8, and its eigenvectors V as columns. In float64.

    V may leave out eigenvectors at the end, those on which all δi are 0: no task vector moves along them.
    """

    deltas: Sequence[Tensor]
    e: Tensor
    v: Tensor

    def minimise(self, theta: Tensor, share: Tensor) -> Tensor:
        """Move θ by these shares of the way to the minimum along the first eigenvectors: θ + ((D V)/e − θV) f V'."""
        count = min(len(share), self.v.shape[1])
        v, e, share = self.v[:, :count], self.e[:count], share[:count]
        moved = (theta.double() @ v).neg_()
        for delta in self.deltas:  # D V
            norm, delta = squared_norm(delta), delta.double()
            for part, own_v, own_e in zip(moved.split(STRIP, 1), v.split(STRIP, 1), e.split(STRIP), strict=True):
                part += delta @ (delta.T @ (delta @ own_v)) / (own_e * norm)
            del delta
        return theta.double().addmm_(moved.mul_(share), v.T).float()


def spectrum(deltas: Sequence[Tensor]) -> Spectrum:
    """The spectrum of C = B'B, with B the δi / |δi| under each other; from B B' where that is smaller."""
    from torch import cat, float64

    rows, columns = deltas[0].shape
    norms = [squared_norm(delta) for delta in deltas]

    def b(*strips: Tensor) -> Tensor:
        return cat([strip / norm**0.5 for strip, norm in zip(strips, norms, strict=True)])

    def stack() -> Tensor:
        return in_strips(b, list(deltas), deltas[0].new_empty(len(deltas) * rows, columns, dtype=float64))

    if len(deltas) * rows < columns:
        u, sigma = short_vectors(gram(stack()))
        u /= sigma
        v = in_strips(lambda *strips: u.T @ b(*strips), list(deltas), u.new_empty(len(sigma), columns)).T
        e = cat([sigma.square(), sigma.new_zeros(columns - len(sigma))])
    else:
        c = deltas[0].new_zeros(columns, columns, dtype=float64)
        for delta, norm in zip(deltas, norms, strict=True):
            delta = delta.double()
            c.addmm_(delta.T, delta, alpha=1 / norm)
        del delta
        e, v = (each.flip(-1) for each in eigenvectors(as_columns(c)))
    return Spectrum(deltas, e.clamp(min=1e-8), v)
