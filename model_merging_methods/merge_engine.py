"""Driving blocks through the passes of a merge.

A pass reads the same stretch of every model, masks it, and either counts something or writes the merged
block. Stretches are handled by several threads in no particular order; whatever is counted is an integer,
so results depend neither on the threads nor on how parameters are cut into blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from model_merging_methods.aligned_models import BASE, AlignedModels
from model_merging_methods.checkpoint_writer import CheckpointWriter
from model_merging_methods.magnitude_thresholds import kth_smallest_magnitudes
from model_merging_methods.mask_weights import apply_mask, magnitude_drop_mask, mask_key, random_drop_mask
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merging_methods import (
    MERGING_METHODS,
    Coefficients,
    elect_signs,
    task_vectors,
    trimmed_task_vectors,
)

BLOCK_SIZE = 1 << 17  # values; a block of each model and its temporaries stay in a core's cache

Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Positions start … stop − 1 of the flattened parameter `name`."""

    name: str
    start: int
    stop: int


class Merge:
    """One merge of aligned models: its passes over the blocks.

    `roles` name the fine-tuned models in their order (such as `math`); random masks depend on them.
    """

    def __init__(
        self,
        models: AlignedModels,
        roles: Sequence[str],
        parameters: MergeParameters,
        threads: int | None = None,
        block_size: int = BLOCK_SIZE,
    ):
        self.models = models
        self.roles = roles
        self.parameters = parameters
        self.method = MERGING_METHODS[parameters.method]
        self.threads = threads or torch.get_num_threads()
        self.block_size = block_size
        self.mask_thresholds: dict[str, list[float | None]] = {}

    def write(self, writer: CheckpointWriter) -> Coefficients:
        """Merge everything into `writer`; returns the coefficients with what was found on the way."""
        with single_threaded_torch():
            coefficients = self._coefficients()

            def merge_block(block: Block) -> None:
                pretrained, finetuned = self._masked(block)
                writer.write(block.name, block.start, self.method.formula(pretrained, finetuned, coefficients))

            for _ in self._map(merge_block, self._blocks(self.models.floating), "merging"):
                pass
            self._copy_the_rest(writer)
        return coefficients

    def _coefficients(self) -> Coefficients:
        parameters = self.parameters
        self.mask_thresholds = self._find_mask_thresholds()
        coefficients = Coefficients(
            weights=parameters.mixup.weights if parameters.mixup else None,
            scaling_coefficient=parameters.scaling_coefficient,
        )
        if not self.method.trims:
            return coefficients
        coefficients = replace(coefficients, trim_thresholds=self._find_trim_thresholds())
        return replace(coefficients, majority_sign=self._find_majority_sign(coefficients.trim_thresholds))

    def _find_trim_thresholds(self) -> tuple[float, ...]:
        """For each model the k-th smallest |δ| over all its parameters, k = int(n · r); 0 for k = 0."""
        rank = int(self.models.number_of_parameters * self.parameters.param_value_mask_rate)

        def map_blocks(count: Callable) -> Iterable:
            def count_block(block: Block):
                pretrained, finetuned = self._masked(block)
                return count(task_vectors(pretrained, finetuned))

            return self._map(count_block, self._blocks(self.models.floating), "finding trim thresholds")

        thresholds = kth_smallest_magnitudes(map_blocks, [rank] * len(self.roles))
        return tuple(threshold or 0.0 for threshold in thresholds)

    def _find_majority_sign(self, trim_thresholds: tuple[float, ...]) -> int:
        def sum_of_signs(block: Block) -> int:
            pretrained, finetuned = self._masked(block)
            trimmed = trimmed_task_vectors(pretrained, finetuned, trim_thresholds)
            return int(elect_signs(trimmed, majority_sign=0).sum(dtype=torch.float64))

        total = sum(self._map(sum_of_signs, self._blocks(self.models.floating), "electing signs"))
        return (total > 0) - (total < 0)

    def _find_mask_thresholds(self) -> dict[str, list[float | None]]:
        """For masks by magnitude: for each parameter and model the int(numel · p)-th smallest |x|."""
        mask = self.parameters.mask
        if mask is None or mask.mask_strategy != "magnitude":
            return {}
        thresholds = {}
        for name in tqdm(self.models.floating, "finding mask thresholds", unit=" parameters", disable=None):

            def map_blocks(count: Callable, name: str = name) -> Iterable:
                def count_block(block: Block):
                    return count(self._values_to_mask(block)[1])

                return self._map(count_block, self._blocks([name]))

            rank = int(self.models.forms[name].numel * mask.weight_mask_rate)
            thresholds[name] = kth_smallest_magnitudes(map_blocks, [rank] * len(self.roles))
        return thresholds

    def _read(self, block: Block) -> tuple[Tensor | None, list[Tensor]]:
        """θ0, if it takes part, and θ1 … θK."""
        place = (block.name, block.start, block.stop)
        pretrained = self.models.read(BASE, *place) if self.parameters.reads_pretrained else None
        return pretrained, [self.models.read(i, *place) for i in range(1, len(self.roles) + 1)]

    def _values_to_mask(self, block: Block) -> tuple[Tensor | None, list[Tensor]]:
        """θ0, and what a mask falls on: the task vectors, or the weights themselves."""
        pretrained, finetuned = self._read(block)
        if self.parameters.mask.weight_format == "delta_weight":
            return pretrained, task_vectors(pretrained, finetuned)
        return pretrained, finetuned

    def _masked(self, block: Block) -> tuple[Tensor | None, list[Tensor]]:
        """θ0 and the models to merge: the fine-tuned ones, masked if the merge asks for it."""
        mask = self.parameters.mask
        if mask is None:
            return self._read(block)
        pretrained, values = self._values_to_mask(block)
        masked = [
            apply_mask(x, self._drop_mask(i, x, block), mask.weight_mask_rate, mask.use_weight_rescale)
            for i, x in enumerate(values)
        ]
        if mask.weight_format == "delta_weight":
            masked = [pretrained + delta for delta in masked]
        return pretrained, masked

    def _drop_mask(self, model: int, values: Tensor, block: Block) -> Tensor:
        mask = self.parameters.mask
        if mask.mask_strategy == "magnitude":
            return magnitude_drop_mask(values, self.mask_thresholds[block.name][model])
        key = mask_key(self.parameters.seed, self.roles[model], block.name)
        return random_drop_mask(key, block.start, block.stop, mask.weight_mask_rate)

    def _copy_the_rest(self, writer: CheckpointWriter) -> None:
        """What is not floating point is the pretrained model's."""
        names = [name for name, form in self.models.forms.items() if not form.dtype.is_floating_point]
        for block in self._blocks(names):
            values = self.models.models[BASE].read(block.name, block.start, block.stop)
            writer.write(block.name, block.start, values)

    def _blocks(self, names: Iterable[str]) -> list[Block]:
        return [
            Block(name, start, min(start + self.block_size, self.models.forms[name].numel))
            for name in names
            for start in range(0, self.models.forms[name].numel, self.block_size)
        ]

    def _map(
        self, function: Callable[[Block], Result], blocks: Sequence[Block], title: str | None = None
    ) -> Iterator[Result]:
        """`function` of every block, computed by all threads, as results come; progress under `title`."""
        with (
            ThreadPoolExecutor(self.threads) as pool,
            tqdm(total=len(blocks), desc=title, unit=" blocks", disable=None if title else True) as progress,
        ):
            remaining = iter(blocks)
            running = {pool.submit(function, block) for block in islice(remaining, 2 * self.threads)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    progress.update()
                running |= {pool.submit(function, block) for block in islice(remaining, len(done))}


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Keep torch from starting threads of its own inside each of ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
