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
    rows = min(k * m, n)
    decomposition, v, strips = 6 * rows**2, 2 * rows * n, min(max(m, n), STRIP)
    found = v + 2 * rows**2 + max(m, 2 * strips) * n if k * m < n else v + 3 * m * n
    return max(decomposition, found, v + 2 * m * rows + 2 * m * n + (6 * m + 4 * n) * strips)


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues e of C, largest first and at least 1e-8, and its eigenvectors V as columns. In float64.

    V may leave out eigenvectors at the end, those on which all δi are 0: no task vector moves along them.
    """

    deltas: Sequence[Tensor]
    e: Tensor
    v: Tensor

    def minimise(self, theta: Tensor, share: Tensor) -> Tensor:
        """Move θ, which is overwritten, by these shares of the way to the minimum along the first eigenvectors:
        θ + ((D V)/e − θV) f V'."""
        from torch import cat

        count = min(len(share), self.v.shape[1])
        v, e, share = self.v[:, :count], self.e[:count], share[:count]
        moved = cat([rows.double() @ v for rows in theta.split(STRIP)]).neg_()
        for place in range(len(self.deltas)):  # D V
            delta = self.deltas[place]
            norm = squared_norm(delta)
            for part, own_v, own_e in zip(moved.split(STRIP, 1), v.split(STRIP, 1), e.split(STRIP), strict=True):
                part += cubed_times(delta, own_v) / (own_e * norm)
            del delta
        moved *= share
        for rows, of_moved in zip(theta.split(STRIP), moved.split(STRIP), strict=True):
            rows.copy_(rows.double().addmm_(of_moved, v.T))
        return theta


def cubed_times(delta: Tensor, v: Tensor) -> Tensor:
    """δ δ'δ V in float64, with strips of δ's rows."""
    from torch import cat

    inner = v.new_zeros(len(v), v.shape[1])
    for rows in delta.split(STRIP):
        rows = rows.double()
        inner.addmm_(rows.T, rows @ v)
        del rows
    return cat([rows.double() @ inner for rows in delta.split(STRIP)])


def spectrum(deltas: Sequence[Tensor]) -> Spectrum:
    """The spectrum of C = B'B, with B the δi / |δi| under each other; from B B' where that is smaller."""
    from torch import cat

    norms, (rows, columns) = [squared_norm(delta) for delta in deltas], deltas[0].shape
    if len(deltas) * rows < columns:
        u, sigma = short_vectors(gram(stacked(deltas, norms)))
        b = stacked(deltas, norms)
        u /= sigma
        v = in_strips(lambda strip: u.T @ strip, [b], b[: len(sigma)]).T
        e = cat([sigma.square(), sigma.new_zeros(columns - len(sigma))])
    else:
        e, v = (each.flip(-1) for each in eigenvectors(as_columns(summed_grams(deltas, norms))))
    return Spectrum(deltas, e.clamp(min=1e-8), v)


def stacked(deltas: Sequence[Tensor], norms: Sequence[float]) -> Tensor:
    """The δi / |δi| under each other, in float64."""
    from torch import float64

    rows, columns = deltas[0].shape
    b = deltas[0].new_empty(len(deltas) * rows, columns, dtype=float64)
    for place, part in enumerate(b.split(rows)):
        part.copy_(deltas[place]).div_(norms[place] ** 0.5)
    return b


def summed_grams(deltas: Sequence[Tensor], norms: Sequence[float]) -> Tensor:
    """Σ δi'δi / |δi|² in float64."""
    from torch import float64

    columns = deltas[0].shape[1]
    c = deltas[0].new_zeros(columns, columns, dtype=float64)
    for place, norm in enumerate(norms):
        delta = deltas[place].double()
        c.addmm_(delta.T, delta, alpha=1 / norm)
        del delta
    return c
