"""The table of methods: which models each method merges, and the values that it may choose from.

A coefficient often decides more than the method. So each method with a scaling coefficient chooses it from the same
five values, on questions that the test does not contain.
"""

from model_merging_methods.method import Method
from model_merging_methods.methods import METHODS

BASELINE, SCALE = "task_arithmetic", "scaling_coefficient"
# The first value is the default or the usual one.
SCALES = (1, 0.2, 0.3, 0.5, 1.5)
# For methods without a scaling coefficient: five values of the option that decides most.
OTHER_OPTIONS = {
    "localize_and_stitch": ("sparsity", (0.1, 0.05, 0.2, 0.4, 0.8)),
    "ramplus_tl": ("r", (0.1, 0, 0.2, 0.5, 1)),
    "sce": ("select_topk", (1, 0.1, 0.2, 0.5, 0.8)),
    "slerp": ("t", (0.5, 0.1, 0.3, 0.7, 0.9)),
    "widen": ("above_average_value_ratio", (1, 0.25, 0.5, 1.5, 2)),
}


def tuned_option(method: Method) -> tuple[str, tuple[float, ...]] | None:
    """The option that is tuned, with its values; None if the method has none."""
    if SCALE in method.options:
        return SCALE, SCALES
    return OTHER_OPTIONS.get(method.name)


def number_of_models(method: Method) -> int | None:
    """3 if the method merges three fine-tunes, 2 if it merges only pairs, else None."""
    least, most = method.models
    return next((number for number in (3, 2) if least <= number <= (most or number)), None)


def left_out() -> dict[str, str]:
    """The methods that the table does not have, with the reason."""
    reasons = {name: _why_left_out(method) for name, method in METHODS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _why_left_out(method: Method) -> str | None:
    if number_of_models(method) is None:
        return "for other numbers of models"
    tuned = tuned_option(method)
    missing = [name for name, option in method.options.items() if option.default is None]
    if set(missing) - {tuned and tuned[0]}:
        return f"--{missing[0]} is required and has no value here"
    return None
