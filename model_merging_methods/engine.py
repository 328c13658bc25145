"""Merge models block by block, or tensor by tensor, into shards or into memory.

Several threads take blocks in any order, which does not affect the results.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock, local
from types import MappingProxyType

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE, AlignedModels
from model_merging_methods.checkpoints.checkpoint_folder import not_finite_error
from model_merging_methods.checkpoints.checkpoint_writer import CheckpointWriter, Shard, TensorForm
from model_merging_methods.kernels.arithmetic import TensorNumbers, sees_blocks
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.kernels.kernel_plan import StoredBlock, Sums
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES, is_floating
from model_merging_methods.kernels.stored_values import all_finite, decode, encode
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.method import Sees
from model_merging_methods.model_blocks import BLOCK_SIZE, ModelBlocks
from model_merging_methods.passes import ModelPasses, mask_numbers
from model_merging_methods.statistics import Statistics
from model_merging_methods.whole_tensors import WholeTensors
from utils.content_hashes import DIGEST_SIZE, STRETCH, stretch_digest, tensor_digest
from utils.safetensors_files import ITEM_SIZES

# Called with a shard whose last block was written, and the report on each of its parameters, by name.
ShardFinished = Callable[[Shard, dict[str, "TensorReport"]], None]

_MOST_KEPT = 140_000_000  # bytes of small parameters that all threads together keep

# Called with a merged block's bytes.
KeepOutput = Callable[[Block, np.ndarray], None]


@dataclass(frozen=True)
class TensorReport:
    """A merged parameter's sums (`kernel_plan.Sums`, in a row), and the digests of each model's values (None unless a
    complete stored tensor was read) and of the written ones."""

    sums: list[float]
    inputs: list[str | None]
    output: str


@dataclass(frozen=True)
class _Target:
    """Where a parameter's merged values go: each block's bytes, in `dtype`, are made in `buffer` and given to `keep`.
    `shard` is the parameter's, if it is written to one."""

    dtype: str
    buffer: np.ndarray
    keep: KeepOutput
    shard: "_OpenShard | None" = None

    def bytes_of(self, block: Block) -> np.ndarray:
        return self.buffer[: (block.stop - block.start) * ITEM_SIZES[self.dtype]]


class Merge:
    """A merge of aligned models.

    `roles` name the fine-tuned models in their order (such as `math`); random masks depend on them. `device` is cpu or
    cuda. `own_parameters` are those of tensors whose options differ from the merge's.
    """

    def __init__(
        self,
        models: AlignedModels,
        roles: Sequence[str],
        parameters: MergeParameters,
        device: str = "cpu",
        threads: int | None = None,
        block_size: int = BLOCK_SIZE,
        own_parameters: Mapping[str, MergeParameters] = MappingProxyType({}),
    ):
        self.models = models
        self.roles = roles
        self.parameters = parameters
        self.blocks = ModelBlocks(models, roles, parameters, device, threads, block_size, own_parameters)
        self.passes = ModelPasses(self.blocks)
        self.merged_names = self.blocks.merged_names
        self.needs_whole_tensors = not sees_blocks(parameters)
        self._whole = WholeTensors(self.blocks)

    @property
    def number_of_parameters(self) -> int:
        """n, the number of merged values."""
        return sum(map(self.blocks.numel, self.merged_names))

    @property
    def memory_of_whole_tensors(self) -> tuple[int, int]:
        """Bytes that the tensors in work take at most, and K + 2 times the largest tensor in float32."""
        return self._whole.memory, self._whole.bound

    @property
    def warnings(self) -> list[str]:
        """What the merge so far found that the user should look at."""
        return self._whole.warnings

    def statistics(self, before_writing: bool = False) -> Statistics:
        """The numbers that depend on whole models or tensors. They must be known before the first block is merged,
        except the inner products of small parameters: `before_writing` leaves these out, and `write` finds them."""
        return self.passes.find_statistics(self._small_names() if before_writing else ())

    def _small_names(self) -> set[str]:
        """The parameters of which each thread can keep a whole one in memory between finding its inner products and
        merging it, so that it is read once."""
        if self.parameters.declared.sees is not Sees.GRAM or self.blocks.block_size != BLOCK_SIZE:
            return set()
        most = _MOST_KEPT // self.blocks.threads // len(self.models.models)
        return {name for name in self.merged_names if self.blocks.numel(name) * self._item_size([name]) <= most}

    def _item_size(self, names: Iterable[str]) -> int:
        """The most bytes per value that a model has of these parameters."""
        read = self.blocks.models_read()
        return max((self.models.item_size(model, name) for model in read for name in names), default=1)

    def write(
        self, writer: CheckpointWriter, shards: Sequence[Shard], statistics: Statistics, finished: ShardFinished
    ) -> None:
        """Merge into `shards` of `writer`. The thread that writes a shard's last block calls `finished`."""
        # Last blocks first: an earlier pass left these in the page cache if the models exceed the memory.
        shards = list(reversed(shards))
        open_shards = {name: work for shard in shards for work in [_OpenShard(shard, self)] for name in shard.names}
        lock = Lock()
        for work in {id(work): work for work in open_shards.values()}.values():
            if work.is_done:  # it holds only tensors without values
                finished(work.shard, work.reports())

        def keep(block: Block, written: np.ndarray) -> None:
            shard = open_shards[block.name]
            writer.write(block.name, block.start, written)
            shard.keep_output(block, written)
            with lock:
                last = shard.count_down()
            if last:
                finished(shard.shard, shard.reports())

        names = [name for shard in shards for name in reversed(shard.names)]
        self._merge(names, writer.forms, statistics, keep, open_shards.get)

    def merge_into_memory(
        self, output: Mapping[str, np.ndarray], forms: Mapping[str, TensorForm], statistics: Statistics
    ) -> None:
        """Merge some parameters into `output`: for each name its bytes (uint8), in the dtype of its form."""

        def keep(block: Block, written: np.ndarray) -> None:
            size = ITEM_SIZES[forms[block.name].dtype]
            output[block.name][block.start * size : block.stop * size] = written

        self._merge(list(output), forms, statistics, keep, lambda name: None)

    def _merge(
        self,
        names: Sequence[str],
        forms: Mapping[str, TensorForm],
        statistics: Statistics,
        keep: KeepOutput,
        shard_of: Callable[[str], "_OpenShard | None"],
    ) -> None:
        """Merge or copy parameters, block by block or, where the merge needs it, whole."""
        blocks, work_on = self.blocks, []
        blocks.mask_numbers = mask_numbers(statistics)
        whole = {name for name in names if name in blocks.merged and self._is_taken_whole(name, statistics)}
        kept_item = self._item_size(whole)
        numbers = {
            name: blocks.numbers(name, statistics) for name in names if name in blocks.merged and name not in whole
        }
        for name in names:
            work_on += [Block(name, 0, blocks.numel(name))] if name in whole else reversed(blocks.blocks([name]))

        def new_worker() -> Callable[[Block], None]:
            room, rooms = blocks.new_room(), []
            width = blocks.block_size * kept_item
            buffer = np.empty(blocks.block_size * max(ITEM_SIZES.values()), np.uint8)

            def work(block: Block) -> None:
                target = _Target(forms[block.name].dtype, buffer, keep, shard_of(block.name))
                if block.name in whole and self.needs_whole_tensors:
                    self._merge_whole(block.name, statistics, target)
                elif block.name in whole:
                    number = -(-block.stop // blocks.block_size)
                    new_room = blocks.arithmetic(block.name).room
                    rooms.extend(new_room(len(room), width) for _ in range(number - len(rooms)))
                    self._merge_kept(block.name, statistics, target, rooms)
                else:
                    self._merge_block(block, numbers.get(block.name), room, target)

            return work

        blocks.for_every(work_on, new_worker, "merging")

    def _is_taken_whole(self, name: str, statistics: Statistics) -> bool:
        """Whether a parameter with values is merged as a whole: because the merge needs that, or to find its inner
        products."""
        if self.needs_whole_tensors or self.blocks.numel(name) == 0:
            return self.blocks.numel(name) > 0
        sees_products = self.parameters.declared.sees is Sees.GRAM
        return sees_products and "gram" not in statistics.of_tensor.get(self.models.matrix(name), {})

    def _merge_kept(self, name: str, statistics: Statistics, target: _Target, rooms: list[np.ndarray]) -> None:
        """Find a parameter's inner products and merge it, with its blocks kept in `rooms` meanwhile."""
        blocks, arithmetic = self.blocks, self.blocks.arithmetic(name)
        own_blocks, kept, gram = blocks.blocks([name]), [], 0
        for block, room in zip(own_blocks, rooms, strict=False):
            kept.append(blocks.read(block, room, target.shard and target.shard.keep_input))
            part = np.zeros((len(self.roles), len(self.roles)))
            blocks.check_finite(arithmetic.gram(kept[-1], part), name)
            gram = gram + part
        matrix = self.models.matrix(name)
        found = Statistics(of_tensor={matrix: {**statistics.at(matrix), "gram": gram}})
        numbers = blocks.numbers(name, found)
        for block, stored in zip(reversed(own_blocks), reversed(kept), strict=True):
            self._merge_stored(block, numbers, stored, target)

    def reader(self, forms: Mapping[str, TensorForm], statistics: Statistics) -> Callable[[Block, np.ndarray], None]:
        """A function that merges a block into an array (uint8), in the dtype of its form; several threads may call it.
        For a merge that does not need whole tensors."""
        blocks, of_thread = self.blocks, local()
        blocks.mask_numbers = mask_numbers(statistics)
        numbers_of = cache(lambda name: blocks.numbers(name, statistics) if name in blocks.merged else None)

        def read(block: Block, output: np.ndarray) -> None:
            if not hasattr(of_thread, "room"):
                of_thread.room = blocks.new_room()
            target = _Target(forms[block.name].dtype, output, keep=lambda block, merged: None)
            self._merge_block(block, numbers_of(block.name), of_thread.room, target)

        return read

    def _merge_block(self, block: Block, numbers: TensorNumbers | None, room: np.ndarray, target: _Target) -> None:
        """Merge a block, or copy it if its tensor has no `numbers`."""
        if numbers is None:
            self._copy(block, target)
        else:
            stored = self.blocks.read(block, room, target.shard and target.shard.keep_input)
            self._merge_stored(block, numbers, stored, target)

    def _merge_stored(self, block: Block, numbers: TensorNumbers, stored: StoredBlock, target: _Target) -> None:
        shard, written, dtype = target.shard, target.bytes_of(block), target.dtype
        sums = shard.sums(block) if shard else Sums.of(np.zeros(Sums.width(len(self.roles))), len(self.roles))
        code = self.blocks.arithmetic(block.name).merge(numbers, stored, FLOATING_CODES[dtype], written, sums)
        self.blocks.check_finite(code, block.name, dtype)
        target.keep(block, written)

    def _merge_whole(self, name: str, statistics: Statistics, target: _Target) -> None:
        shard, dtype = target.shard, target.dtype
        with self._whole.turn(name):
            largest = self._whole.check(name, shard and shard.keep_input, shard and shard.sums)
            for block, values in self._in_blocks(name, self._whole.merged(name, statistics, largest)):
                written = target.bytes_of(block)
                fits = encode(values, FLOATING_CODES[dtype], 0, written)
                self.blocks.check_finite(0 if fits else -1, name, dtype)
                target.keep(block, written)

    def _in_blocks(self, name: str, pieces: Iterable[np.ndarray]) -> Iterator[tuple[Block, np.ndarray]]:
        """A parameter's blocks, and their values from consecutive pieces of any size."""
        left = np.empty(0, np.float32)
        blocks = iter(self.blocks.blocks([name]))
        block = next(blocks)
        for piece in pieces:
            left = np.concatenate([left, piece]) if left.size else piece
            while block is not None and left.size >= block.stop - block.start:
                yield block, left[: block.stop - block.start]
                left, block = left[block.stop - block.start :], next(blocks, None)
            left = left.copy()  # the next piece may be made in this one's place

    def _copy(self, block: Block, target: _Target) -> None:
        """Copy the pretrained model's values: its bytes, unless they are saved in another dtype."""
        stored, written, dtype = self.models.stored_tensor(BASE, block.name), target.bytes_of(block), target.dtype
        if dtype == stored.dtype:
            written[:] = self.models.read_copy(block.name, block.start, block.stop)
            if is_floating(dtype) and not _holds_finite(written, dtype):
                raise not_finite_error(stored.file, block.name)
        else:
            values = self.models.read_float32(BASE, block.name, block.start, block.stop)
            fits = encode(values, FLOATING_CODES[dtype], 0, written)
            self.blocks.check_finite(0 if fits else -1, block.name, dtype)
        target.keep(block, written)


def _holds_finite(stored: np.ndarray, dtype: str) -> bool:
    if dtype == "F64":  # float32 would overflow
        return bool(np.isfinite(stored.view(np.float64)).all())
    values = np.empty(stored.size // ITEM_SIZES[dtype], np.float32)
    decode(stored, FLOATING_CODES[dtype], 0, values)
    return bool(all_finite(values))


class _OpenShard:
    """The sums and digests of a shard whose blocks are being written."""

    def __init__(self, shard: Shard, merge: Merge):
        self.shard = shard
        self._merge = merge
        self._models = len(merge.models.models)
        self._first: dict[str, int] = {}
        self._left = 0
        for name in shard.names:
            self._first[name] = self._left
            self._left += -(-merge.models.forms[name].numel // merge.blocks.block_size)
        self._sums = np.zeros((self._left, Sums.width(len(merge.roles))))
        self._inputs = np.zeros((self._models, self._left, DIGEST_SIZE), np.uint8)
        self._outputs = np.zeros((self._left, DIGEST_SIZE), np.uint8)

    def _place(self, block: Block) -> int:
        return self._first[block.name] + block.start // self._merge.blocks.block_size

    def sums(self, block: Block) -> Sums:
        return Sums.of(self._sums[self._place(block)], self._models - 1)

    def keep_input(self, model: int, block: Block, values: np.ndarray) -> None:
        if self._is_whole(model, block.name):
            size = self._merge.models.stored_tensor(model, block.name).item_size
            self._inputs[model, self._place(block)] = stretch_digest(values[: (block.stop - block.start) * size])

    def keep_output(self, block: Block, values: np.ndarray) -> None:
        self._outputs[self._place(block)] = stretch_digest(values)

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def count_down(self) -> bool:
        """Count one block as written. Returns whether it was the last."""
        self._left -= 1
        return self.is_done

    def reports(self) -> dict[str, TensorReport]:
        return {name: self._report(name) for name in self.shard.names}

    def _report(self, name: str) -> TensorReport:
        first = self._first[name]
        own = slice(first, first - (-self._merge.models.forms[name].numel // self._merge.blocks.block_size))
        merged = name in self._merge.blocks.merged
        read = set(self._merge.blocks.models_read()) if merged else set()
        inputs = [
            tensor_digest(self._inputs[model, own]) if model in read and self._is_whole(model, name) else None
            for model in range(self._models)
        ]
        sums = np.add.reduce(self._sums[own], axis=0)
        return TensorReport(sums.tolist(), inputs, tensor_digest(self._outputs[own]))

    def _is_whole(self, model: int, name: str) -> bool:
        """Whether a model's blocks of a parameter are the stretches of one stored tensor."""
        return self._merge.blocks.block_size == STRETCH and self._merge.models.origin(model, name) is not None
