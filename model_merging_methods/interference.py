"""The objective of WUDI, Σ |(θ − δi) δi'|² / |δi|², and its minimum in the eigenvectors of C = Σ δi'δi / |δi|².

With D = Σ δi δi'δi / |δi|², its gradient is 2 (θ C − D). A model with δi = 0 has no term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_merging_methods.singular_values import triplets
from model_merging_methods.task_vectors import mean, squared_norm, total

if TYPE_CHECKING:
    from torch import Tensor


def changed(deltas: Sequence[Tensor]) -> list[Tensor]:
    """The task vectors that are not 0."""
    return [delta for delta in deltas if delta.any()]


def all_negligible(deltas: Sequence[Tensor]) -> bool:
    """Whether every |δi|² is below 1e-12."""
    return all(squared_norm(delta) < 1e-12 for delta in deltas)


def initial(deltas: Sequence[Tensor], mode: str) -> Tensor:
    """θ to start from: the "sum" or the "mean" of the task vectors, or "zero"."""
    return {"sum": total, "mean": mean, "zero": lambda deltas: deltas[0] * 0}[mode](deltas)


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
        theta = theta.double()
        moved = -(theta @ v)
        for delta in self.deltas:  # D V
            delta = delta.double()
            moved += delta @ (delta.T @ (delta @ v)) / (e * squared_norm(delta))
        return theta.addmm_(moved.mul_(share), v.T).float()


def spectrum(deltas: Sequence[Tensor]) -> Spectrum:
    """The spectrum of C = B'B, with B the δi / |δi| under each other; from B B' where that is smaller."""
    from torch import cat, float64
    from torch.linalg import eigh

    rows, columns = deltas[0].shape
    norms = [squared_norm(delta) for delta in deltas]
    if len(deltas) * rows < columns:
        b = cat([delta.double() / norm**0.5 for delta, norm in zip(deltas, norms, strict=True)])
        _, sigma, v = triplets(b)
        e, v = cat([sigma.square(), sigma.new_zeros(columns - len(sigma))]), v.T
    else:
        c = deltas[0].new_zeros(columns, columns, dtype=float64)
        for delta, norm in zip(deltas, norms, strict=True):
            delta = delta.double()
            c.addmm_(delta.T, delta, alpha=1 / norm)
        e, v = (each.flip(-1) for each in eigh(c))
    return Spectrum(deltas, e.clamp(min=1e-8), v)
