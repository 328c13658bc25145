"""Find the k-th smallest magnitude of many values, exactly, in as few passes over them as possible.

Bit patterns of non-negative float32 numbers are in the numbers' order. A sample shows between which two patterns the
k-th is most likely (its bracket). A pass counts the values below and above, and each pattern in between. If the k-th is
there, it is found. If not, another pass searches the right side, in bins of patterns if they are too many. Counts add
up in any order, so threads and block sizes change nothing.

The same pass gives the majority sign of TIES: outside the brackets it is certain which values are trimmed, and for the
few values inside, the pass notes which sign their position elects in either case.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model_merging_methods.kernels.counting_kernels import Brackets, Undecided, count_undecided

BINS = 1 << 19  # counters for each model; the patterns within about 3 % of a number
LARGEST_PATTERN = 0x7F800000  # infinity, because the difference of finite numbers may be infinite
_MOST_SHARED_BYTES = 1 << 26  # of positions where several models are undecided
_STANDARD_ERRORS = 4


@dataclass(frozen=True)
class Bracket:
    """The patterns between which, both included, a threshold is searched. Values in between are counted by
    pattern >> shift."""

    low: int
    high: int
    shift: int = 0

    @staticmethod
    def between(low: int, high: int) -> "Bracket":
        """The bracket with the finest bins possible."""
        return Bracket(low, high, max((high - low).bit_length() - (BINS.bit_length() - 1), 0))


EVERYWHERE = Bracket.between(0, LARGEST_PATTERN)


class ThresholdSearch:
    """The search for t1 … tK, where ti is the `ranks[i]`-th smallest |x| of model i, counted from 1.

    In each pass, count against `brackets` and `add` the counts of every block; then `conclude`, until `done`.
    `thresholds` then holds float32 numbers, None for a rank of 0; and `sum_of_signs`, `with_signs`, the sum over all
    positions of the sign of Σi τi (TIES).
    """

    def __init__(self, ranks: Sequence[int], brackets: Sequence[Bracket], with_signs: bool = False):
        self._ranks = list(ranks)
        self._brackets = [b if k else Bracket(0, 0) for k, b in zip(ranks, brackets, strict=True)]
        self._patterns: list[int | None] = [None if k else 0 for k in ranks]
        self._with_signs = with_signs
        self.sum_of_signs: int | None = None
        self._start_pass()

    @property
    def done(self) -> bool:
        found = all(pattern is not None for pattern in self._patterns)
        return found and (self.sum_of_signs is not None or not self._with_signs)

    @property
    def thresholds(self) -> list[float | None]:
        return [_number(p) if k else None for p, k in zip(self._patterns, self._ranks, strict=True)]

    @property
    def brackets(self) -> Brackets:
        """The brackets of the next pass, for the kernels."""
        return Brackets(
            np.array([bracket.low for bracket in self._brackets], np.int32),
            np.array([bracket.high for bracket in self._brackets], np.int32),
            np.array([bracket.shift for bracket in self._brackets], np.int32),
        )

    def add(self, counts: "BlockCounts") -> None:
        """Add the counts of a block; call it from one thread at a time."""
        self._counts += counts.below_and_up_to
        self._signs += counts.signs
        count_undecided(counts.undecided, counts.found, *self._counters)
        rows = counts.undecided.values[: counts.shared]
        self._shared_overflow |= len(rows) < counts.shared
        if self._with_signs and not self._shared_overflow and len(rows):
            self._shared.append(rows.copy())
            self._shared_bytes += rows.nbytes
            self._shared_overflow = self._shared_bytes > _MOST_SHARED_BYTES

    def new_histograms(self) -> np.ndarray:
        """Zeros for the undecided values of this pass: int64 [K, bins]."""
        return np.zeros_like(self._counters[0])

    def add_histograms(self, below_and_up_to: np.ndarray, histograms: np.ndarray) -> None:
        """Add counts of many blocks whose undecided values were put into histograms, without signs."""
        self._counts += below_and_up_to
        self._counters[0] += histograms

    def conclude(self) -> None:
        """Conclude from a whole pass: find thresholds, or choose the next brackets."""
        passed = list(self._brackets)
        for i, rank in enumerate(self._ranks):
            if self._patterns[i] is None:
                self._conclude_threshold(i, rank)
        if self._with_signs and all(pattern is not None for pattern in self._patterns):
            self.sum_of_signs = self._conclude_signs(passed)
        self._start_pass()

    def _conclude_threshold(self, i: int, rank: int) -> None:
        bracket, histogram = self._brackets[i], self._counters[0][i]
        below, up_to = (int(count) for count in self._counts[i])
        if rank <= below:
            self._brackets[i] = Bracket.between(0, bracket.low - 1)
        elif rank <= below + int(histogram.sum()):
            bin = int(np.searchsorted(np.cumsum(histogram), rank - below))
            first = bracket.low + (bin << bracket.shift)
            if bracket.shift == 0:
                self._patterns[i] = first
                self._brackets[i] = Bracket(first, first)
            else:
                self._brackets[i] = Bracket.between(first, first + (1 << bracket.shift) - 1)
        elif rank <= up_to:
            self._patterns[i] = bracket.high
            self._brackets[i] = Bracket(bracket.high, bracket.high)
        else:
            self._brackets[i] = Bracket.between(bracket.high + 1, LARGEST_PATTERN)

    def _conclude_signs(self, passed: Sequence[Bracket]) -> int | None:
        """The sum of the elected signs; None if this pass does not show it."""
        bounds = [p - b.low for p, b in zip(self._patterns, passed, strict=True)]
        within = all(0 <= bound <= b.high - b.low for bound, b in zip(bounds, passed, strict=True))
        if self._shared_overflow or not within or any(bracket.shift for bracket in passed):
            return None
        total = self._signs
        _, signs_kept, signs_trimmed = self._counters
        for i, bound in enumerate(bounds):
            total += int(signs_trimmed[i, :bound].sum()) + int(signs_kept[i, bound:].sum())
        thresholds = np.array(self._patterns, np.int32).view(np.float32)
        for values in self._shared:
            kept = np.where(np.abs(values) >= thresholds, values, np.float32(0))
            sums = kept[:, 0].copy()
            for column in kept.T[1:]:
                sums += column
            total += int(np.count_nonzero(sums > 0)) - int(np.count_nonzero(sums < 0))
        return total

    def _start_pass(self) -> None:
        models = len(self._ranks)
        self._counts = np.zeros((models, 2), np.int64)
        self._signs = 0
        bins = max(((b.high - b.low) >> b.shift) + 1 for b in self._brackets)
        self._counters = [np.zeros((models, bins), np.int64) for _ in range(3 if self._with_signs else 1)]
        self._shared: list[np.ndarray] = []
        self._shared_bytes = 0
        self._shared_overflow = False


@dataclass
class BlockCounts:
    """The counts of one block for a ThresholdSearch: for each model how many magnitudes are below its bracket and how
    many are not above it (int64 [K, 2]), the sum of signs over decided positions, and the undecided values."""

    below_and_up_to: np.ndarray
    undecided: Undecided
    signs: int = 0
    found: int = 0
    shared: int = 0


@dataclass
class MagnitudeSample:
    """Magnitudes of a model's values in pieces from all over it: float32 [pieces, values]."""

    pieces: list[np.ndarray] = field(default_factory=list)

    def bracket(self, share: float, widest: int = BINS) -> Bracket:
        """The bracket in which to search the threshold that this `share` of all values does not exceed.

        The differences between the sample's pieces give its error. A bracket of more than `widest` patterns is narrowed
        about its middle: if that fails, one more pass is needed, as without narrowing.
        """
        if not self.pieces:
            return EVERYWHERE
        values = np.sort(np.concatenate(self.pieces))

        def pattern_at(share: float) -> int:
            return _pattern(values[min(max(int(share * values.size), 0), values.size - 1)])

        middle = pattern_at(share)
        shares = [np.count_nonzero(piece <= _number(middle)) / piece.size for piece in self.pieces]
        margin = _STANDARD_ERRORS * float(np.std(shares)) / len(shares) ** 0.5 + 1 / values.size
        low, high = pattern_at(share - margin), pattern_at(share + margin)
        return Bracket(max(low, middle - widest // 2), min(high, middle + widest // 2 - 1))


def _pattern(magnitude: np.float32) -> int:
    return int(np.float32(magnitude).view(np.int32))


def _number(pattern: int) -> float:
    return float(np.int32(pattern).view(np.float32))
