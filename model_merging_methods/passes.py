"""The passes over a merge's models that find statistics before the first block is merged.

The order in which threads take blocks does not affect the results: counts are integers, and floating-point sums are
kept by block and added in block order.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from model_merging_methods.kernels.arithmetic import masks_in_blocks, sees_blocks
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.kernels.kernel_plan import StoredBlock, Sums
from model_merging_methods.kernels.radix_search import RadixSearch, magnitudes_of, sum_of_elected_signs
from model_merging_methods.largest_magnitudes import LargestOf, smallest_of_largest
from model_merging_methods.magnitude_passes import MagnitudePasses
from model_merging_methods.merge_parameters import Mask
from model_merging_methods.method import Sees, Value
from model_merging_methods.model_blocks import BLOCK_SIZE, EVERY_VALUE, KEEP_ALL, NO_VALUE, ModelBlocks
from model_merging_methods.statistics import Statistics
from model_merging_methods.stretches import STRETCH
from model_merging_methods.survivors import restoring_factor
from model_merging_methods.whole_tensors import WholeTensors

if TYPE_CHECKING:
    from torch import Tensor

    from model_merging_methods.method import Tensors, WholeTensor

_GUARD_PIECES, _GUARD_PIECE = 256, 4096  # the sample that shows whether models are related


class ModelPasses:
    """The passes over one merge's models (`statistics.Passes`)."""

    def __init__(self, blocks: ModelBlocks):
        self._blocks = blocks
        self.magnitudes = MagnitudePasses(blocks)
        self.merged_names = blocks.merged_names
        self.number_of_models = len(blocks.roles)

    def numel(self, name: str) -> int:
        return self._blocks.numel(name)

    def options(self, name: str) -> dict[str, Value]:
        return self._blocks.parameters_at(name).formula_options(self.number_of_models)

    def find_statistics(self, without_products: Collection[str] = ()) -> Statistics:
        """Everything that the merge's mask and method declared; of some parameters without the inner products."""
        parameters = self._blocks.parameters
        method, found = parameters.declared, Statistics(of_tensor=self._mask_numbers())
        self._blocks.mask_numbers = mask_numbers(found)
        if method.sees is Sees.GRAM and sees_blocks(parameters):
            found = found.plus(Statistics(of_tensor=self._grams(without_products)))
        for statistic in method.statistics:
            found = found.plus(statistic.find(self, parameters.formula_options(self.number_of_models), found))
        return found

    def compare_sample(self) -> dict[str, np.ndarray]:
        """`kernel_plan.Sums` in a row, by parameter, over pieces from all over the unmasked models."""
        return self._compare(self._blocks.pieces(self.merged_names, _GUARD_PIECES, _GUARD_PIECE))

    def compare(self) -> dict[str, np.ndarray]:
        """The same sums over everything, without merging."""
        return self._compare(self._blocks.blocks(self.merged_names), "comparing")

    def _grams(self, left_out: Collection[str]) -> dict[str, dict[str, list]]:
        """The inner products of each other parameter's masked task vectors, or of its weights if θ0 is not read:
        float64 [K, K]."""
        names = [name for name in self.merged_names if name not in left_out]
        totals = self._totals(names, attrgetter("gram"), self.number_of_models, "inner products")
        return {name: {"gram": total.tolist()} for name, total in totals.items()}

    def magnitude_thresholds(
        self, names: Sequence[str], ranks: Sequence[int], with_signs: bool = False
    ) -> tuple[list[float], int]:
        if sees_blocks(self._blocks.parameters):
            search = self.magnitudes.over_all(names, ranks, True, with_signs, "trimming" if with_signs else None)
            return [threshold or 0.0 for threshold in search.thresholds], search.sum_of_signs or 0
        places = [[max(rank - 1, 0)] for rank in ranks]
        found = self.order_statistics(names, magnitudes_of, places, Statistics())
        thresholds = [of_model[0] if rank else 0.0 for of_model, rank in zip(found, ranks, strict=True)]
        if not with_signs:
            return thresholds, 0
        signs: list[int] = []

        def elected(x: "Tensors") -> "Tensor":
            return sum_of_elected_signs(x.deltas, thresholds)

        self._view(names, elected, Statistics(), lambda _, of_piece: signs.append(int(of_piece)))
        return thresholds, sum(signs)

    def order_statistics(
        self,
        names: Sequence[str],
        values: "Callable[[Tensors], Tensor]",
        ranks: Sequence[Sequence[int]],
        found: Statistics,
    ) -> list[list[float]]:
        search = RadixSearch(ranks)
        while not search.done:
            self._view(names, lambda x: search.counts(values(x)), found, lambda _, counts: search.add(counts))
            search.conclude()
        return search.found

    def _view(
        self,
        names: Sequence[str],
        function: "Callable[[Tensors | WholeTensor], Tensor]",
        found: Statistics,
        collect: Callable[[str, np.ndarray], object],
        in_strips: bool = True,
    ) -> None:
        """Give `collect` a function's values of each block of the masked models, with the tensor's name, one at a time
        and in any order. If the merge needs whole tensors: of each strip, if that is enough, or of each tensor."""
        from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic, one_thread

        whole = not sees_blocks(self._blocks.parameters)
        tensors, lock = WholeTensors(self._blocks), Lock()
        arithmetic_of = cache(lambda own: TorchArithmetic(own, self.number_of_models, self._blocks.device))

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room()

            def view(block: Block) -> None:
                numbers = self._blocks.numbers(block.name, found)
                if whole:
                    with tensors.turn(block.name, whole=not in_strips), one_thread():
                        tensors.check(block.name)
                        for x in tensors.strips(numbers) if in_strips else [tensors.on_demand(numbers)]:
                            add(block.name, function(x).cpu().numpy())
                else:
                    arithmetic = arithmetic_of(self._blocks.parameters_at(block.name))
                    code, result = arithmetic.view(numbers, self._blocks.read(block, room), function)
                    self._blocks.check_finite(code, block.name)
                    add(block.name, result)

            return view

        def add(name: str, result: np.ndarray) -> None:
            with lock:
                collect(name, result)

        blocks = [Block(name, 0, self.numel(name)) for name in names] if whole else self._blocks.blocks(names)
        self._blocks.for_every(blocks, new_worker)

    def largest_of_tensors(self, wanted: Mapping[str, Sequence[LargestOf]]) -> dict[str, list[tuple[float, int]]]:
        if sees_blocks(self._blocks.parameters):
            return self.magnitudes.of_tensors(wanted, True)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in wanted}

        def find(x: "WholeTensor") -> "Tensor":
            import torch

            pairs = [smallest_of_largest(x.deltas[one.model].abs(), one.number) for one in wanted[x.name]]
            return torch.tensor(pairs, dtype=torch.float64)

        def add(name: str, pairs: np.ndarray) -> None:
            found[name] = [(threshold, int(last)) for threshold, last in pairs.tolist()]

        if any(wanted.values()):
            self._view([name for name in wanted if wanted[name]], find, Statistics(), add, in_strips=False)
        return found

    def change_counts(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        if sees_blocks(self._blocks.parameters):
            return self._totals(names, attrgetter("count_changes"), 2, "changes")
        from model_merging_methods.methods.ramplus_tl import count_changes

        found = {name: np.zeros((self.number_of_models, 2)) for name in names}

        def count(x: "Tensors") -> "Tensor":
            epsilon = self.options(x.name)["epsilon"]
            stretches = zip(*(delta.split(STRETCH) for delta in x.deltas), strict=True)
            return sum(count_changes(stretch, epsilon) for stretch in stretches)

        def add(name: str, counts: np.ndarray) -> None:
            found[name] += counts

        self._view(names, count, Statistics(), add)
        return found

    def _mask_numbers(self) -> dict[str, dict[str, list[list[float]]]]:
        """The numbers of the masks of each parameter, by model, if any differ from tensor to tensor."""
        mask = self._blocks.parameters.mask
        if mask is None or not masks_in_blocks(mask):
            return {}
        numbers = {name: [list(KEEP_ALL) for _ in self._blocks.roles] for name in self.merged_names}
        masks = {name: self._blocks.parameters_at(name).mask for name in self.merged_names}
        if mask.declared.keeps is not None:
            self._find_kept(masks, numbers)
        restoring = [name for name, own in masks.items() if own.declared.restores_sum(own.values)]
        if restoring:
            self._blocks.mask_numbers = numbers
            sums = self._mask_sums()
            for name in restoring:
                for own, (before, after) in zip(numbers[name], sums[name].tolist(), strict=True):
                    own[-1] = restoring_factor(before, after)
        return {name: {"mask_numbers": own} for name, own in numbers.items()}

    def _find_kept(self, masks: Mapping[str, Mask], numbers: Mapping[str, list[list[float]]]) -> None:
        """Put what masks by magnitude keep into their numbers."""
        wanted: dict[str, list[LargestOf]] = {name: [] for name in self.merged_names}
        places: dict[str, list[tuple[list[float], int]]] = {name: [] for name in self.merged_names}
        for name, of_models in numbers.items():
            n = self.numel(name)
            for model, own in enumerate(of_models):
                sets = masks[name].declared.keeps(n, **masks[name].options_of_model(model))
                for place, (number, ties) in zip((0, 2), sets, strict=True):
                    if number < 1:
                        own[place : place + 2] = NO_VALUE
                    elif number > n or (number == n and ties != "none"):
                        own[place : place + 2] = EVERY_VALUE
                    else:
                        wanted[name].append(LargestOf(model, number, ties))
                        places[name].append((own, place))
        for name, found in self.magnitudes.of_tensors(wanted, False).items():
            for (own, place), threshold_and_last in zip(places[name], found, strict=True):
                own[place : place + 2] = threshold_and_last

    def _mask_sums(self) -> dict[str, np.ndarray]:
        """The sums of each parameter's magnitudes before the mask and after it: float64 [K, 2]. Its blocks have one
        size, as those of inner products."""
        return self._totals(self.merged_names, attrgetter("mask_sums"), 2, "sums of magnitudes")

    def _totals(
        self,
        names: Sequence[str],
        adds: Callable[[Any], Callable[[StoredBlock, np.ndarray], int]],
        columns: int,
        title: str,
    ) -> dict[str, np.ndarray]:
        """By parameter, the sum of what a method of its arithmetic adds to an array, float64 [K, columns], for each
        block. The blocks have one size, so that sums are the same whatever the merge's block size."""
        blocks = self._blocks.blocks(names, BLOCK_SIZE)
        part_of = {block: np.zeros((self.number_of_models, columns)) for block in blocks}

        def new_worker() -> Callable[[Block], None]:
            room = self._blocks.new_room(BLOCK_SIZE)

            def work(block: Block) -> None:
                add = adds(self._blocks.arithmetic(block.name))
                self._blocks.check_finite(add(self._blocks.read(block, room), part_of[block]), block.name)

            return work

        self._blocks.for_every(blocks, new_worker, title)
        totals: dict[str, np.ndarray] = {}
        for block, part in part_of.items():
            totals[block.name] = totals.get(block.name, 0) + part
        return totals

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


def mask_numbers(found: Statistics) -> dict[str, Sequence[Sequence[float]]]:
    """The numbers of the masks, by parameter."""
    return {name: own["mask_numbers"] for name, own in found.of_tensor.items() if "mask_numbers" in own}
