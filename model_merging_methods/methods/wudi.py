"""WUDI: whoever started the interference should end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import changed
from model_merging_methods.method import About, Sees, WholeTensor, is_linear_weight, merging_method
from model_merging_methods.singular_values import NARROW, STRIP
from model_merging_methods.task_vectors import squared_norm, total

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Cheng et al. 2025, arXiv 2503.08099",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=lambda m, n, k: n * n + max(5 * m * n + 3 * min(m, NARROW) * n, (k + 1) * m * n + n * min(n, STRIP)),
)
def wudi(
    x: WholeTensor,
    *,
    iterations: Annotated[int, About("steps of Adam", 0)] = 300,
    learning_rate: Annotated[float, About("learning rate of Adam: about how far a value moves in a step", 0)] = 1e-5,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Start at the sum of the task vectors and minimise their interference in each linear layer with Adam.

    The interference is Σ |(θ − δi) δi'|² / |δi|². Adam moves each value by about the learning rate a step, whatever the
    size of the task vectors, so 300 steps move it by at most about 0.003. A model with δi = 0 is left out.
    """
    deltas = changed(x.deltas)
    if not deltas:
        return x.base
    step = descent(*gradient_at_sum(deltas), iterations, learning_rate)
    return x.moved(total(deltas).add_(step), scaling_coefficient)


def gradient_at_sum(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient at Σ δi, and the curvature: how it changes with a step is the step times the curvature."""
    from torch import zeros_like

    start = zeros_like(deltas[0])
    curvature = start.new_zeros(start.shape[1], start.shape[1])
    deltas = list(deltas)
    for delta in deltas:
        scale = 2 / squared_norm(delta)
        parts = zip(delta.split(STRIP, 1), curvature.split(STRIP, 1), start.split(STRIP, 1), strict=True)
        for of_delta, of_curvature, of_start in parts:
            gram = (delta.T @ of_delta).mul_(scale)
            of_curvature += gram
            for other in deltas:
                if other is not delta:
                    of_start.addmm_(other, gram)
    return start, curvature


def descent(start: Tensor, curvature: Tensor, iterations: int, learning_rate: float) -> Tensor:
    """Adam's step from Σ δi. The gradient there stays apart: no digits cancel, and an iteration takes one product."""
    from torch import addmm, zeros_like
    from torch.optim import Adam

    step, gradient = zeros_like(start), zeros_like(start)
    parts = step.split(NARROW)  # Adam's own intermediate results are as large as a part
    for part, of_gradient in zip(parts, gradient.split(NARROW), strict=True):
        part.grad = of_gradient
    adam = Adam(parts, lr=learning_rate)
    for _ in range(iterations):
        addmm(start, step, curvature, out=gradient)
        adam.step()
    return step
