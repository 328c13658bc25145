"""WUDI: whoever started the interference should end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import changed
from model_merging_methods.method import About, Sees, Tensors, is_linear_weight, merging_method
from model_merging_methods.task_vectors import squared_norm, total

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Cheng et al. 2025, arXiv 2503.08099",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=lambda m, n, k: 7 * m * n + 2 * n * n,
)
def wudi(
    x: Tensors,
    *,
    iterations: Annotated[int, About("steps of Adam", 0)] = 300,
    learning_rate: Annotated[float, About("learning rate of Adam: about how far a value moves in a step", 0)] = 1e-5,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Start at the sum of the task vectors and minimise their interference in each linear layer with Adam.

    The interference is Σ |(θ − δi) δi'|² / |δi|². Adam moves each value by about the learning rate a step, whatever the
    size of the task vectors, so 300 steps move it by at most about 0.003. A model with δi = 0 is left out.
    """
    from torch import zeros_like
    from torch.optim import Adam

    deltas = changed(x.deltas)
    if not deltas:
        return x.base.clone()
    # θ = Σ δi + step, with the gradient at Σ δi apart: no digits cancel, and an iteration takes one product.
    step, start, curvature = zeros_like(x.base), zeros_like(x.base), x.base.new_zeros(x.shape[1], x.shape[1])
    for i, delta in enumerate(deltas):
        gram = delta.T @ delta
        gram *= 2 / squared_norm(delta)
        curvature += gram
        for other in deltas[:i] + deltas[i + 1 :]:
            start.addmm_(other, gram)
    adam = Adam([step], lr=learning_rate)
    for _ in range(iterations):
        step.grad = start.addmm(step, curvature)
        adam.step()
    return x.base + scaling_coefficient * (total(deltas) + step)
