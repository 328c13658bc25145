"""Singular triplets and polar factors in float64, without null directions.

A null direction has a singular value below 1e-6 of the largest. Models that share unchanged rows, and LoRA adapters,
have many of them. An SVD returns arbitrary vectors there, which the methods would add at full size.

The triplets come from the eigenvectors of the smaller of A A' and A'A. This takes a quarter of the time of an SVD
(0.75 s instead of 3.1 s for 1024 × 2816). Its relative error is about 1e-16 κ², where κ is the largest singular value
divided by the one in question: 1e-8 where κ is 2e4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NULL = 1e-6


def triplets(matrix: Tensor, count: int | None = None, largest: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V' of the first `count` singular triplets (None: all), largest first, without null directions.

    largest: what null directions are measured by, the matrix's own largest singular value by default.
    """
    matrix = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        v, sigma, u = triplets(matrix.T, count, largest)
        return u.T, sigma, v.T
    sigma, u = _left_vectors(matrix, largest)
    sigma, u = sigma[:count], u[:, :count]
    return u, sigma, (u / sigma).T @ matrix


def _left_vectors(matrix: Tensor, largest: float | None = None) -> tuple[Tensor, Tensor]:
    """S and U of a matrix with no more rows than columns."""
    from torch.linalg import eigh

    squares, u = eigh(matrix @ matrix.T)
    sigma = squares.flip(0).clamp(min=0).sqrt()
    floor = NULL * (sigma[:1] if largest is None else largest)
    rank = int(((sigma >= floor) & (sigma > 0)).sum())
    return sigma[:rank], u.flip(1)[:, :rank]


def polar_factor(matrix: Tensor) -> Tensor:
    """P Q' of the SVD P Σ Q', without null directions."""
    matrix = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        return polar_factor(matrix.T).T
    sigma, u = _left_vectors(matrix)
    return ((u / sigma) @ u.T) @ matrix
