"""The passes over a merge's models that find statistics before the first block is merged.

The order in which threads take blocks does not affect the results: counts are integers, and floating-point sums are
kept by block and added in block order.
"""

from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.kernels.arithmetic import mask_rates, masks_in_blocks, sees_blocks
from model_merging_methods.kernels.block_kernels import Sums, Undecided
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.kernels.magnitude_thresholds import MagnitudeSample, ThresholdSearch
from model_merging_methods.kernels.radix_search import RadixSearch, magnitudes_of, sum_of_elected_signs
from model_merging_methods.method import Sees, Value
from model_merging_methods.model_blocks import BLOCK_SIZE, ModelBlocks
from model_merging_methods.statistics import Statistics
from model_merging_methods.whole_tensors import WholeTensors

if TYPE_CHECKING:
    from torch import Tensor

    from model_merging_methods.method import Tensors

_GUARD_PIECES, _GUARD_PIECE = 256, 4096  # the sample that shows whether models are related
_TRIM_PIECES, _TRIM_PIECE = 2048, 1024  # the sample that brackets thresholds
_FEWEST_PIECES, _VALUES_PER_PIECE = 64, 1 << 15  # fewer for a single tensor
_MOST_SHARED = 1 << 15  # positions of a block where several models may be undecided


class ModelPasses:
    """The passes over one merge's models (`statistics.Passes`)."""

    def __init__(self, blocks: ModelBlocks):
        self._blocks = blocks
        self.merged_names = blocks.merged_names
        self.number_of_models = len(blocks.roles)

    def numel(self, name: str) -> int:
        return self._blocks.numel(name)

    def options(self, name: str) -> dict[str, Value]:
        return self._blocks.parameters_at(name).formula_options(self.number_of_models)

    def find_statistics(self) -> Statistics:
        """Everything that the merge's mask and method declared."""
        parameters = self._blocks.parameters
        method, found = parameters.declared, Statistics(of_tensor=self._mask_thresholds())
        self._blocks.mask_thresholds = mask_thresholds(found)
        if method.sees is Sees.GRAM and sees_blocks(parameters):
            found = found.plus(Statistics(of_tensor=self._grams()))
        for statistic in method.statistics:
            found = found.plus(statistic.find(self, parameters.formula_options(self.number_of_models), found))
        return found

    def compare_sample(self) -> dict[str, np.ndarray]:
        """`block_kernels.Sums` in a row, by parameter, over pieces from all over the unmasked models."""
        return self._compare(self._blocks.pieces(self.merged_names, _GUARD_PIECES, _GUARD_PIECE))

    def compare(self) -> dict[str, np.ndarray]:
        """The same sums over everything, without merging."""
        return self._compare(self._blocks.blocks(self.merged_names), "comparing")

    def _grams(self) -> dict[str, dict[str, list]]:
        """The inner products of each parameter's masked task vectors, or of its weights if θ0 is not read: float64
        [K, K]. Its blocks have one size, so that the sums are the same whatever the merge's block size."""
        blocks = self._blocks.blocks(self.merged_names, BLOCK_SIZE)
        gram_of = {block: np.zeros((self.number_of_models, self.number_of_models)) for block in blocks}

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room(BLOCK_SIZE)

            def add(block: Block) -> None:
                code = self._blocks.arithmetic(block.name).gram(self._blocks.read(block, room), gram_of[block])
                self._blocks.check_finite(code, block.name)

            return add

        self._blocks.for_every(blocks, new_worker, "inner products")
        totals: dict[str, np.ndarray] = {}
        for block, gram in gram_of.items():
            totals[block.name] = totals.get(block.name, 0) + gram
        return {name: {"gram": total.tolist()} for name, total in totals.items()}

    def magnitude_thresholds(
        self, names: Sequence[str], ranks: Sequence[int], with_signs: bool = False
    ) -> tuple[list[float], int]:
        if sees_blocks(self._blocks.parameters):
            search = self._search(names, ranks, True, with_signs, "trimming" if with_signs else None)
            return [threshold or 0.0 for threshold in search.thresholds], search.sum_of_signs or 0
        places = [[max(rank - 1, 0)] for rank in ranks]
        found = self.order_statistics(names, magnitudes_of, places, Statistics())
        thresholds = [of_model[0] if rank else 0.0 for of_model, rank in zip(found, ranks, strict=True)]
        if not with_signs:
            return thresholds, 0
        signs: list[np.ndarray] = []
        self._view(names, lambda x: sum_of_elected_signs(x.deltas, thresholds), Statistics(), signs.append)
        return thresholds, sum(map(int, signs))

    def order_statistics(
        self,
        names: Sequence[str],
        values: "Callable[[Tensors], Tensor]",
        ranks: Sequence[Sequence[int]],
        found: Statistics,
    ) -> list[list[float]]:
        search = RadixSearch(ranks)
        while not search.done:
            self._view(names, lambda x: search.counts(values(x)), found, search.add)
            search.conclude()
        return search.found

    def _view(
        self,
        names: Sequence[str],
        function: "Callable[[Tensors], Tensor]",
        found: Statistics,
        collect: Callable[[np.ndarray], object],
    ) -> None:
        """Give `collect` a function's values of each block of the masked models, or of each whole tensor if the merge
        needs these, one at a time and in any order."""
        from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic, one_thread

        whole = not sees_blocks(self._blocks.parameters)
        tensors, lock = WholeTensors(self._blocks), Lock()
        arithmetic_of = cache(lambda own: TorchArithmetic(own, self.number_of_models, self._blocks.device))

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()

            def view(block: Block) -> None:
                if whole:
                    with tensors.turn(block.name), one_thread():
                        x = tensors.tensors(block.name, tensors.read(block.name), found)
                        result = function(x).cpu().numpy()
                else:
                    numbers = self._blocks.numbers(block.name, found)
                    arithmetic = arithmetic_of(self._blocks.parameters_at(block.name))
                    code, result = arithmetic.view(numbers, self._blocks.read(block, room), function)
                    self._blocks.check_finite(code, block.name)
                with lock:
                    collect(result)

            return view

        blocks = [Block(name, 0, self.numel(name)) for name in names] if whole else self._blocks.blocks(names)
        self._blocks.for_every(blocks, new_worker)

    def last_of_largest(self, name: str, thresholds: Sequence[float], numbers: Sequence[int]) -> list[int]:
        if not sees_blocks(self._blocks.parameters):
            return self._last_in_whole(name, thresholds, numbers)
        blocks = self._blocks.blocks([name])
        counts = self._count_equal(blocks, thresholds)
        lasts = []
        for model, number in enumerate(numbers):
            wanted = number - int(counts[:, model, 0].sum())
            if wanted <= 0:
                lasts.append(-1)
                continue
            equal = np.cumsum(counts[:, model, 1])
            index = int(np.searchsorted(equal, wanted))
            before = int(equal[index - 1]) if index else 0
            lasts.append(self._place_in_block(blocks[index], model, thresholds[model], wanted - before))
        return lasts

    def _last_in_whole(self, name: str, thresholds: Sequence[float], numbers: Sequence[int]) -> list[int]:
        """`last_of_largest`, of a whole tensor."""
        magnitudes: list[np.ndarray] = []
        self._view([name], magnitudes_of, Statistics(), magnitudes.extend)
        lasts = []
        for of_model, threshold, number in zip(magnitudes, thresholds, numbers, strict=True):
            wanted = number - np.count_nonzero(of_model > np.float32(threshold))
            lasts.append(int(np.flatnonzero(of_model == np.float32(threshold))[wanted - 1]) if wanted > 0 else -1)
        return lasts

    def _place_in_block(self, block: Block, model: int, threshold: float, number: int) -> int:
        stored = self._blocks.read(block, self._blocks.new_room())
        return block.start + self._blocks.arithmetic(block.name).place_of_equal(stored, model, threshold, number)

    def _count_equal(self, blocks: Sequence[Block], thresholds: Sequence[float]) -> np.ndarray:
        """How many masked |δ| of each block are above and equal to the thresholds: int64 [blocks, K, 2]."""
        counts = np.zeros((len(blocks), self.number_of_models, 2), np.int64)
        place = {block: row for block, row in zip(blocks, counts, strict=True)}

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()

            def count(block: Block) -> None:
                place[block][:] = self._blocks.arithmetic(block.name).count_equal(
                    self._blocks.read(block, room), thresholds
                )

            return count

        self._blocks.for_every(blocks, new_worker)
        return counts

    def _mask_thresholds(self) -> dict[str, dict[str, list[float | None]]]:
        """For the mask by magnitude: for each parameter and model the int(numel · p)-th smallest |x|."""
        mask = self._blocks.parameters.mask
        if mask is None or mask.name != "magnitude" or not masks_in_blocks(mask):
            return {}
        thresholds = {}
        for name in self.merged_names:
            rates = mask_rates(self._blocks.parameters_at(name).mask, self.number_of_models)
            ranks = [int(self.numel(name) * rate) for rate in rates]
            thresholds[name] = {"mask_thresholds": self._search([name], ranks, False, False, name).thresholds}
        return thresholds

    def _search(
        self, names: Sequence[str], ranks: Sequence[int], masked: bool, with_signs: bool, title: str | None
    ) -> ThresholdSearch:
        """The thresholds over some parameters together: of the masked models' task vectors if `masked`, else of the
        values that the mask is applied to."""
        samples = [MagnitudeSample() for _ in ranks]
        total = sum(map(self.numel, names))
        if total > _TRIM_PIECES * _TRIM_PIECE:
            samples = self.sample_magnitudes(names, masked)
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
            counts = np.zeros((self.number_of_models, 2), np.int64), search.new_histograms()
            of_workers.append(counts)

            def count(block: Block) -> None:
                stored = self._blocks.read(block, room)
                code = self._blocks.arithmetic(block.name).count_histogram(stored, brackets, masked, *counts)
                self._blocks.check_finite(code, block.name)

            return count

        self._blocks.for_every(blocks, new_worker, title)
        for counts in of_workers:
            search.add_histograms(*counts)

    def sample_magnitudes(self, names: Sequence[str], masked: bool) -> list[MagnitudeSample]:
        """A sample of each model's magnitudes from all over these parameters: of the masked models' task vectors if
        `masked`, else of the values that the mask is applied to."""
        samples = [MagnitudeSample() for _ in range(self.number_of_models)]
        number = min(_TRIM_PIECES, max(_FEWEST_PIECES, sum(map(self.numel, names)) // _VALUES_PER_PIECE))
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

    def _compare(self, blocks: Sequence[Block], title: str | None = None) -> dict[str, np.ndarray]:
        rows = np.zeros((len(blocks), Sums.width(self.number_of_models)))
        row_of = {block: row for block, row in zip(blocks, rows, strict=True)}

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()

            def compare(block: Block) -> None:
                sums = Sums.of(row_of[block], self.number_of_models)
                code = self._blocks.arithmetic(block.name).compare(self._blocks.read(block, room), sums)
                self._blocks.check_finite(code, block.name)

            return compare

        self._blocks.for_every(blocks, new_worker, title)
        totals: dict[str, np.ndarray] = {}
        for block, row in row_of.items():
            totals[block.name] = totals.get(block.name, 0) + row
        return totals

    def _new_undecided(self) -> Undecided:
        most = self.number_of_models * self._blocks.block_size
        columns = (np.empty(most, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8))
        shared = min(self._blocks.block_size, _MOST_SHARED)
        return Undecided(*columns, np.empty((shared, self.number_of_models), np.float32))


def mask_thresholds(found: Statistics) -> dict[str, Sequence[float | None]]:
    """The thresholds of the mask by magnitude, by parameter."""
    return {name: own["mask_thresholds"] for name, own in found.of_tensor.items() if "mask_thresholds" in own}
