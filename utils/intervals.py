"""How far a figure may lie from the truth by chance."""

import math

_Z_OF_95_PERCENT = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927): inside [0, 1], and not empty at either end."""
    z2 = _Z_OF_95_PERCENT**2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_OF_95_PERCENT * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # At the ends of [0, 1] rounding would leave the share itself outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))
