"""Find the k-th largest magnitudes of one tensor exactly, mostly in one pass over it, and where values equal them.

A sample gives the bracket of each (`magnitude_thresholds`). The pass counts the magnitudes below and up to the end, and
keeps a table of those inside for each block: the different ones, and how often each occurs. The tables show the k-th,
and in which block the last equal value that counts among the k largest is. Blocks may be added in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np

from model_merging_methods.kernels import selection
from model_merging_methods.kernels.counting_kernels import Brackets
from model_merging_methods.kernels.magnitude_thresholds import LARGEST_PATTERN, Bracket
from model_merging_methods.largest_magnitudes import LargestOf

UNSAMPLED = Bracket(0, LARGEST_PATTERN)  # for small tensors: every magnitude is kept


@dataclass
class Found:
    """The smallest of the largest magnitudes; and of the values equal to it how many count, and how many there are in
    each block (int64)."""

    threshold: float
    counting: int
    equal: np.ndarray


class Table(NamedTuple):
    """Bins of a block's magnitudes inside a bracket, in order, and how many magnitudes each has."""

    bins: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(candidates: np.ndarray) -> "Table":
        """The table of bins (int32) in any order."""
        ordered = np.sort(candidates)
        bins, counts = np.empty_like(ordered), np.empty_like(ordered)
        runs = selection.count_runs(ordered, bins, counts)
        return Table(bins[:runs].copy(), counts[:runs].copy())


class TensorSearch:
    """The search for some `LargestOf` in a tensor of n values in a number of blocks.

    In each pass, `add` the counts and tables of every block; then `conclude`. `found` then has what was found, None
    where another pass is needed. `lock` is for the owner.
    """

    def __init__(self, wanted: Sequence[LargestOf], n: int, blocks: int):
        self.wanted = wanted
        self.found: list[Found | None] = [None] * len(wanted)
        self.lock = Lock()
        self.is_sampled = False
        self._n, self._blocks = n, blocks
        self._brackets = [UNSAMPLED] * len(wanted)

    def start(self, brackets: Sequence[Bracket]) -> None:
        """Set the brackets in which the smallest of the largest are expected, and begin the first pass."""
        self._brackets, self.is_sampled = list(brackets), True
        self._start_pass()

    @property
    def shares_below(self) -> list[float]:
        """About the shares of the magnitudes that do not exceed the thresholds."""
        return [(self._n - one.number + 1) / self._n for one in self.wanted]

    @property
    def done(self) -> bool:
        return None not in self.found

    @property
    def models(self) -> np.ndarray:
        """The model of each bracket, for the kernels."""
        return np.array([self.wanted[s].model for s in self._searched], np.int64)

    @property
    def brackets(self) -> Brackets:
        brackets = [self._brackets[s] for s in self._searched]
        return Brackets(*(np.array([getattr(b, of) for b in brackets], np.int32) for of in ("low", "high", "shift")))

    def add(self, place: int, counts: np.ndarray, tables: Sequence[Table]) -> bool:
        """Add a block's counts (`counting_kernels.note_candidates`) and tables. Returns whether it was the last one."""
        self._counts[place], self._tables[place] = counts, tables
        with self.lock:
            self._left -= 1
            return self._left == 0

    def conclude(self) -> None:
        """Conclude from a whole pass."""
        for row, s in enumerate(self._searched):
            self._conclude(s, self._counts[:, row], [tables[row] for tables in self._tables])
        self._start_pass()

    def _conclude(self, s: int, counts: np.ndarray, tables: Sequence[Table]) -> None:
        bracket, number = self._brackets[s], self.wanted[s].number
        rank = self._n - number + 1
        below, inside, up_to = counts.sum(0).tolist()
        if rank <= below:
            self._brackets[s] = Bracket.between(0, bracket.low - 1)
        elif rank <= below + inside:
            bins, of_bins = (np.concatenate(column) for column in zip(*tables, strict=True))
            bin = int(selection.kth_of_counted(bins, of_bins, rank - below))
            first = bracket.low + (bin << bracket.shift)
            if bracket.shift:
                self._brackets[s] = Bracket.between(first, first + (1 << bracket.shift) - 1)
                return
            above = self._n - below - int(of_bins[bins <= bin].sum())
            equal = np.array([_count_in(table, bin) for table in tables], np.int64)
            self.found[s] = Found(_number(first), number - above, equal)
        elif rank <= up_to:
            equal = counts[:, 2] - counts[:, 1] - counts[:, 0]
            self.found[s] = Found(_number(bracket.high), number - (self._n - up_to), equal)
        else:
            self._brackets[s] = Bracket.between(bracket.high + 1, LARGEST_PATTERN)

    def _start_pass(self) -> None:
        self._searched = [s for s, found in enumerate(self.found) if found is None]
        self._left = self._blocks
        self._counts = np.zeros((self._blocks, len(self._searched), 3), np.int64)
        self._tables: list[Sequence[Table]] = [()] * self._blocks


def _count_in(table: Table, bin: int) -> int:
    place = int(np.searchsorted(table.bins, bin))
    return int(table.counts[place]) if place < len(table.bins) and table.bins[place] == bin else 0


def _number(pattern: int) -> float:
    return float(np.int32(pattern).view(np.float32))
