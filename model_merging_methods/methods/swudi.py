"""SWUDI: WUDI in closed form with a spectral filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import all_negligible, changed, initial, memory_of_spectrum, spectrum
from model_merging_methods.method import About, Sees, WholeTensor, is_linear_weight, merging_method
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="the repository of OptMerge, WalkerWorldPeace/MLLMerging, 2026",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=memory_of_spectrum,
)
def swudi(
    x: WholeTensor,
    *,
    exp_time: Annotated[float, About("how far to descend: the filter is 1 − exp(−e exp_time)", 0)] = 300.0,
    truncate_rank_ratio: Annotated[float, About("share of the eigenvectors to move along, the largest", 0, 1)] = 0.85,
    init_mode: Annotated[
        str, About("the start; sum needs a scaling_coefficient near 1/K", choices=("sum", "mean", "zero"))
    ] = "mean",
    filter_type: Annotated[
        str, About("none: all the way to the minimum", choices=("exponential", "none"))
    ] = "exponential",
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Move the task vectors towards the minimum of their interference, along its eigenvectors of largest curvature.

    The interference is that of WUDI. Eigenvalues below 1e-8 count as 1e-8. truncate_rank_ratio 0.65 was published for
    CLIP, 0.85 for language models. A model with δi = 0 is left out; where all |δi|² are below 1e-12, the
    mean task vector is added. Eigenvectors are in float64, where the published code uses float32.

    By default the start is the mean. The published code starts at the sum, which keeps K times the shared change
    along all other eigenvectors, and scales the result by about 1/K.
    """
    if all_negligible(x.deltas):
        return x.moved(mean(x.deltas), scaling_coefficient)
    deltas = changed(x.deltas)
    curvature = spectrum(deltas)
    e = curvature.e[: max(1, int(x.shape[1] * truncate_rank_ratio + 0.999))]
    share = 1 - (-e * exp_time).exp() if filter_type == "exponential" else e.new_ones(len(e))
    merged = curvature.minimise(initial(deltas, init_mode), share)
    del curvature
    return x.moved(merged, scaling_coefficient)
