"""The passes that find order statistics of magnitudes, over a whole model or in each tensor.

A sample brackets a statistic, and a pass counts what is below the bracket and inside it. Another pass is needed only if
the bracket misses.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock

import numpy as np

from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.kernels.counting_kernels import Undecided
from model_merging_methods.kernels.magnitude_thresholds import (
    LARGEST_PATTERN,
    Bracket,
    MagnitudeSample,
    ThresholdSearch,
)
from model_merging_methods.kernels.tensor_search import UNSAMPLED, Table, TensorSearch
from model_merging_methods.largest_magnitudes import LargestOf
from model_merging_methods.model_blocks import ModelBlocks

_TRIM_PIECES, _FEWEST_TRIM_PIECES, _TRIM_PIECE = 2048, 64, 1024  # the sample that brackets thresholds
# The sample for a single tensor: a piece for this many values, but not fewer or more than so.
_PIECE, _VALUES_PER_PIECE, _FEWEST_PIECES, _MOST_PIECES = 512, 1 << 16, 32, 512
_MOST_SHARED = 1 << 15  # positions of a block where several models may be undecided


class MagnitudePasses:
    """The searches in one merge's models: among the masked models' task vectors if `masked`, else among the values that
    the mask is applied to."""

    def __init__(self, blocks: ModelBlocks):
        self._blocks = blocks

    def over_all(
        self, names: Sequence[str], ranks: Sequence[int], masked: bool, with_signs: bool, title: str | None
    ) -> ThresholdSearch:
        """Each model's ranks-th smallest magnitude over some parameters together."""
        samples = [MagnitudeSample() for _ in ranks]
        total = sum(map(self._blocks.numel, names))
        if total > _TRIM_PIECES * _TRIM_PIECE:
            samples = self.sample(names, masked)
        brackets = [sample.bracket(rank / max(total, 1)) for sample, rank in zip(samples, ranks, strict=True)]
        search = ThresholdSearch(ranks, brackets, with_signs)
        blocks = self._blocks.blocks(names)
        while not search.done:
            count = self._count_with_signs if with_signs else self._count_histograms
            count(search, blocks, masked, title)
            search.conclude()
        return search

    def _count_with_signs(self, search: ThresholdSearch, blocks: Sequence[Block], masked: bool, title: str) -> None:
        brackets, lock = search.brackets, Lock()

        def new_worker() -> Callable[[Block], None]:
            room, undecided = self._blocks.new_room(), self._new_undecided()

            def count(block: Block) -> None:
                stored = self._blocks.read(block, room)
                code, counts = self._blocks.arithmetic(block.name).count(stored, brackets, masked, undecided)
                self._blocks.check_finite(code, block.name)
                with lock:
                    search.add(counts)

            return count

        self._blocks.for_every(blocks, new_worker, title)

    def _count_histograms(
        self, search: ThresholdSearch, blocks: Sequence[Block], masked: bool, title: str | None
    ) -> None:
        brackets, of_workers = search.brackets, []

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()
            counts = np.zeros((len(self._blocks.roles), 2), np.int64), search.new_histograms()
            of_workers.append(counts)

            def count(block: Block) -> None:
                stored = self._blocks.read(block, room)
                code = self._blocks.arithmetic(block.name).count_histogram(stored, brackets, masked, *counts)
                self._blocks.check_finite(code, block.name)

            return count

        self._blocks.for_every(blocks, new_worker, title)
        for counts in of_workers:
            search.add_histograms(*counts)

    def sample(self, names: Sequence[str], masked: bool) -> list[MagnitudeSample]:
        """A sample of each model's magnitudes from all over these parameters."""
        samples = [MagnitudeSample() for _ in range(len(self._blocks.roles))]
        number = min(_TRIM_PIECES, max(_FEWEST_TRIM_PIECES, sum(map(self._blocks.numel, names)) >> 15))
        pieces: dict[Block, np.ndarray] = {}

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()

            def load(block: Block) -> None:
                code, pieces[block] = self._blocks.arithmetic(block.name).magnitudes(
                    self._blocks.read(block, room), masked
                )
                self._blocks.check_finite(code, block.name)

            return load

        self._blocks.for_every(self._blocks.pieces(names, number, _TRIM_PIECE), new_worker)
        for block in sorted(pieces, key=lambda block: (block.name, block.start)):
            for sample, piece in zip(samples, pieces[block], strict=True):
                sample.pieces.append(piece)
        return samples

    def of_tensors(self, wanted: Mapping[str, Sequence[LargestOf]], masked: bool) -> dict[str, list[tuple[float, int]]]:
        """`statistics.Passes.largest_of_tensors`. One pass, and more for tensors of which a sample tells too little."""
        searches = {
            name: TensorSearch(of_tensor, self._blocks.numel(name), len(self._blocks.blocks([name])))
            for name, of_tensor in wanted.items()
        }
        lasts: dict[str, list[int]] = {}
        left = [name for name, search in searches.items() if not search.done]
        while left:
            self._search_pass({name: searches[name] for name in left}, masked, lasts)
            left = [name for name in left if not searches[name].done]
        return {
            name: [(one.threshold, last) for one, last in zip(search.found, lasts.get(name, ()), strict=True)]
            for name, search in searches.items()
        }

    def _search_pass(self, searches: Mapping[str, TensorSearch], masked: bool, lasts: dict[str, list[int]]) -> None:
        """A pass over all blocks of these tensors. Whoever counts a tensor's last block concludes its search."""
        most = max(len(search.wanted) for search in searches.values())

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()
            candidates = np.empty((most, self._blocks.block_size), np.int32)

            def count(block: Block) -> None:
                search = searches[block.name]
                with search.lock:
                    if not search.is_sampled:
                        search.start(self._brackets(block.name, search, masked, room))
                stored = self._blocks.read(block, room)
                code, counts, bins = self._blocks.arithmetic(block.name).note_candidates(
                    stored, search.models, search.brackets, masked, candidates
                )
                self._blocks.check_finite(code, block.name)
                if search.add(block.start // self._blocks.block_size, counts, [Table.of(own) for own in bins]):
                    search.conclude()
                    if search.done:
                        lasts[block.name] = self._lasts(block.name, search, masked, room)

            return count

        self._blocks.for_every(self._blocks.blocks(searches), new_worker, "largest values")

    def _brackets(self, name: str, search: TensorSearch, masked: bool, room: np.ndarray) -> list[Bracket]:
        """The brackets of a tensor's search, from evenly spaced pieces."""
        number = min(_MOST_PIECES, max(_FEWEST_PIECES, self._blocks.numel(name) // _VALUES_PER_PIECE))
        if self._blocks.numel(name) <= 4 * number * _PIECE or self._blocks.block_size < number * _PIECE:
            return [UNSAMPLED] * len(search.wanted)
        block = self._blocks.read_pieces(name, number, _PIECE, room)
        code, magnitudes = self._blocks.arithmetic(name).magnitudes(block, masked)
        self._blocks.check_finite(code, name)
        samples = [MagnitudeSample(list(of_model.reshape(number, _PIECE))) for of_model in magnitudes]
        return [
            samples[one.model].bracket(share, LARGEST_PATTERN)
            for one, share in zip(search.wanted, search.shares_below, strict=True)
        ]

    def _lasts(self, name: str, search: TensorSearch, masked: bool, room: np.ndarray) -> list[int]:
        """The positions of the last values that count among the largest and equal the smallest of them; or −1."""
        lasts = []
        for one, found in zip(search.wanted, search.found, strict=True):
            up_to = np.cumsum(found.equal)
            if one.ties == "none":
                lasts.append(-1)
            elif one.ties == "all" or found.counting == up_to[-1]:
                lasts.append(self._blocks.numel(name) - 1)
            else:
                place = int(np.searchsorted(up_to, found.counting))
                block = self._blocks.blocks([name])[place]
                number = found.counting - int(up_to[place] - found.equal[place])
                stored = self._blocks.read(block, room)
                within = self._blocks.arithmetic(name).place_of_equal(
                    stored, masked, one.model, found.threshold, number
                )
                lasts.append(block.start + within)
        return lasts

    def _new_undecided(self) -> Undecided:
        most = len(self._blocks.roles) * self._blocks.block_size
        columns = (np.empty(most, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8))
        shared = min(self._blocks.block_size, _MOST_SHARED)
        return Undecided(*columns, np.empty((shared, len(self._blocks.roles)), np.float32))
