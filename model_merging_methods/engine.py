"""The passes of a merge over the blocks of its models.

A pass reads the same stretch of every model and either counts something or writes the merged block. Several threads
take stretches in any order. The order does not affect the results: counts are integers, and floating-point sums are
kept by block and added in block order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE, AlignedModels
from model_merging_methods.checkpoints.checkpoint_folder import not_finite_error
from model_merging_methods.checkpoints.checkpoint_writer import CheckpointWriter, Shard, TensorForm
from model_merging_methods.kernels.arithmetic import open_arithmetic
from model_merging_methods.kernels.block_kernels import StoredBlock, Sums, Undecided, all_finite, decode, encode
from model_merging_methods.kernels.block_passes import Block, for_every_block
from model_merging_methods.kernels.magnitude_thresholds import MagnitudeSample, ThresholdSearch
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES, LONG_NAMES, is_floating
from model_merging_methods.merge_request import MergeParameters, mask_key
from model_merging_methods.merging_methods import MERGING_METHODS, Coefficients
from utils.content_hashes import DIGEST_SIZE, STRETCH, stretch_digest, tensor_digest
from utils.errors import UserError
from utils.machine import available_cores
from utils.safetensors_files import ITEM_SIZES

BLOCK_SIZE = STRETCH
_GUARD_PIECES, _GUARD_PIECE = 256, 4096  # the sample that shows whether models are related
_TRIM_PIECES, _TRIM_PIECE = 2048, 1024  # the sample that brackets thresholds
_MOST_SHARED = 1 << 15  # positions of a block where several models may be undecided

# Called with a shard whose last block was written, and the report on each of its parameters, by name.
ShardFinished = Callable[[Shard, dict[str, "TensorReport"]], None]


@dataclass(frozen=True)
class TensorReport:
    """A merged parameter's sums (`block_kernels.Sums`, in a row), and the digests of each model's values (None unless a
    complete stored tensor was read) and of the written ones."""

    sums: list[float]
    inputs: list[str | None]
    output: str


class Merge:
    """A merge of aligned models.

    `roles` name the fine-tuned models in their order (such as `math`); random masks depend on them. `device` is cpu or
    cuda.
    """

    def __init__(
        self,
        models: AlignedModels,
        roles: Sequence[str],
        parameters: MergeParameters,
        device: str = "cpu",
        threads: int | None = None,
        block_size: int = BLOCK_SIZE,
    ):
        self.models = models
        self.roles = roles
        self.parameters = parameters
        copied = {models.matrix(name) for name in models.forms if parameters.excludes(name)} | models.kept
        self._merged = frozenset(
            name
            for name, form in models.forms.items()
            if is_floating(form.dtype) and models.matrix(name) not in copied and name not in copied
        )
        # Each value once: a matrix that is written under two names counts under one of them.
        self.merged_names = [name for name in models.forms if name in self._merged and name not in models.same_as]
        self._arithmetic = open_arithmetic(device, parameters, len(roles))
        self._threads = threads or len(available_cores())
        self._block_size = block_size
        self._mask_thresholds: Mapping[str, Sequence[float | None]] = {}

    @property
    def number_of_parameters(self) -> int:
        """n, the number of merged values."""
        return sum(self.models.forms[name].numel for name in self.merged_names)

    def coefficients(self) -> Coefficients:
        """The numbers that depend on whole models. They must be known before the first block is merged."""
        parameters = self.parameters
        self._mask_thresholds = self._find_mask_thresholds()
        coefficients = Coefficients(
            ratios=parameters.mixup.ratios if parameters.mixup else None,
            scaling_coefficient=parameters.scaling_coefficient,
            mask_thresholds=self._mask_thresholds,
        )
        if not MERGING_METHODS[parameters.method].has_trimming:
            return coefficients
        search = self._find_trim_thresholds()
        return replace(
            coefficients,
            trim_thresholds=tuple(threshold or 0.0 for threshold in search.thresholds),
            majority_sign=(search.sum_of_signs > 0) - (search.sum_of_signs < 0),
        )

    def compare_sample(self) -> dict[str, np.ndarray]:
        """`block_kernels.Sums` in a row, by parameter, over pieces from all over the unmasked models."""
        return self._compare(self._pieces(self.merged_names, _GUARD_PIECES, _GUARD_PIECE))

    def compare(self) -> dict[str, np.ndarray]:
        """The same sums over everything, without merging."""
        return self._compare(self._blocks(self.merged_names), "comparing")

    def write(self, writer: CheckpointWriter, coefficients: Coefficients, finished: ShardFinished) -> None:
        """Merge into `writer`'s shards. The thread that writes a shard's last block calls `finished`."""
        self._mask_thresholds = coefficients.mask_thresholds
        # Last blocks first: an earlier pass left these in the page cache if the models exceed the memory.
        shards = list(reversed(writer.shards))
        blocks = [block for shard in shards for block in reversed(self._blocks(shard.names))]
        open_shards = {name: work for shard in shards for work in [_OpenShard(shard, self)] for name in shard.names}
        lock = Lock()
        for work in {id(work): work for work in open_shards.values()}.values():
            if work.is_done:  # it holds only tensors without values
                finished(work.shard, work.reports())

        def new_worker() -> Callable[[Block], None]:
            room = self._new_room()
            output = np.empty(self._block_size * max(ITEM_SIZES.values()), np.uint8)

            def work(block: Block) -> None:
                shard, form = open_shards[block.name], writer.forms[block.name]
                written = output[: (block.stop - block.start) * ITEM_SIZES[form.dtype]]
                self._merge_or_copy(block, room, coefficients, form, written, shard.sums(block), shard)
                writer.write(block.name, block.start, written)
                shard.keep_output(block, written)
                with lock:
                    last = shard.count_down()
                if last:
                    finished(shard.shard, shard.reports())

            return work

        for_every_block(blocks, new_worker, self._threads, self._read_ahead, "merging")

    def merge_into_memory(
        self, output: Mapping[str, np.ndarray], forms: Mapping[str, TensorForm], coefficients: Coefficients
    ) -> None:
        """Merge some parameters into `output`: for each name its bytes (uint8), in the dtype of its form."""
        self._mask_thresholds = coefficients.mask_thresholds

        def new_worker() -> Callable[[Block], None]:
            room = self._new_room()
            sums = Sums.of(np.zeros(Sums.width(len(self.roles))), len(self.roles))

            def work(block: Block) -> None:
                form = forms[block.name]
                size = ITEM_SIZES[form.dtype]
                written = output[block.name][block.start * size : block.stop * size]
                self._merge_or_copy(block, room, coefficients, form, written, sums)

            return work

        for_every_block(self._blocks(output), new_worker, self._threads, self._read_ahead)

    def _merge_or_copy(
        self,
        block: Block,
        room: np.ndarray,
        coefficients: Coefficients,
        form: TensorForm,
        output: np.ndarray,
        sums: Sums,
        shard: "_OpenShard | None" = None,
    ) -> None:
        if block.name not in self._merged:
            self._copy(block, form.dtype, output)
            return
        stored = self._read(block, room, shard)
        code = self._arithmetic.merge(coefficients, stored, FLOATING_CODES[form.dtype], output, sums)
        self._check_finite(code, block.name, form.dtype)

    def _find_mask_thresholds(self) -> dict[str, list[float | None]]:
        """For masks by magnitude: for each parameter and model the int(numel · p)-th smallest |x|."""
        mask = self.parameters.mask
        if mask is None or mask.mask_strategy != "magnitude":
            return {}
        rate = mask.weight_mask_rate
        ranks = {name: int(self.models.forms[name].numel * rate) for name in self.merged_names}
        return {name: self._search([name], rank, rate, False, name).thresholds for name, rank in ranks.items()}

    def _find_trim_thresholds(self) -> ThresholdSearch:
        """For each model the k-th smallest |δ| over all its parameters, k = int(n · r), and the majority sign."""
        rate = self.parameters.param_value_mask_rate
        rank = int(self.number_of_parameters * rate)
        return self._search(self.merged_names, rank, rate, True, "trimming")

    def _search(self, names: Sequence[str], rank: int, rate: float, masked: bool, title: str) -> ThresholdSearch:
        """The thresholds over some parameters together: of the masked models' task vectors, with the sum of their
        signs, if `masked`; else of the values that the mask is applied to."""
        samples = [MagnitudeSample() for _ in self.roles]
        if sum(self.models.forms[name].numel for name in names) > _TRIM_PIECES * _TRIM_PIECE:
            samples = self.sample_magnitudes(names, masked)
        search = ThresholdSearch([rank] * len(self.roles), [sample.bracket(rate) for sample in samples], masked)
        lock = Lock()
        while not search.done:
            brackets = search.brackets

            def new_worker(brackets=brackets) -> Callable[[Block], None]:
                room, undecided = self._new_room(), self._new_undecided()

                def count(block: Block) -> None:
                    code, counts = self._arithmetic.count(self._read(block, room), brackets, masked, undecided)
                    self._check_finite(code, block.name)
                    with lock:
                        search.add(counts)

                return count

            for_every_block(self._blocks(names), new_worker, self._threads, self._read_ahead, title)
            search.conclude()
        return search

    def sample_magnitudes(self, names: Sequence[str], masked: bool) -> list[MagnitudeSample]:
        """A sample of each model's magnitudes from all over these parameters: of the masked models' task vectors if
        `masked`, else of the values that the mask is applied to."""
        samples = [MagnitudeSample() for _ in self.roles]
        pieces: dict[Block, np.ndarray] = {}

        def new_worker() -> Callable[[Block], None]:
            room = self._new_room()

            def load(block: Block) -> None:
                code, pieces[block] = self._arithmetic.magnitudes(self._read(block, room), masked)
                self._check_finite(code, block.name)

            return load

        for_every_block(self._pieces(names, _TRIM_PIECES, _TRIM_PIECE), new_worker, self._threads, self._read_ahead)
        for block in sorted(pieces, key=lambda block: (block.name, block.start)):
            for sample, piece in zip(samples, pieces[block], strict=True):
                sample.pieces.append(piece)
        return samples

    def _compare(self, blocks: Sequence[Block], title: str | None = None) -> dict[str, np.ndarray]:
        rows = np.zeros((len(blocks), Sums.width(len(self.roles))))
        row_of = {block: row for block, row in zip(blocks, rows, strict=True)}

        def new_worker() -> Callable[[Block], None]:
            room = self._new_room()

            def compare(block: Block) -> None:
                sums = Sums.of(row_of[block], len(self.roles))
                self._check_finite(self._arithmetic.compare(self._read(block, room), sums), block.name)

            return compare

        for_every_block(blocks, new_worker, self._threads, self._read_ahead, title)
        totals: dict[str, np.ndarray] = {}
        for block, row in row_of.items():
            totals[block.name] = totals.get(block.name, 0) + row
        return totals

    def _new_room(self) -> np.ndarray:
        return self._arithmetic.room(len(self.roles) + 1, self._block_size * self.models.largest_item)

    def _new_undecided(self) -> Undecided:
        most = len(self.roles) * self._block_size
        columns = (np.empty(most, dtype) for dtype in (np.int16, np.int32, np.int8, np.int8))
        return Undecided(*columns, np.empty((min(self._block_size, _MOST_SHARED), len(self.roles)), np.float32))

    def _read(self, block: Block, room: np.ndarray, shard: "_OpenShard | None" = None) -> StoredBlock:
        """A block of all models that the method reads, as stored; its digests go to `shard`."""
        dtypes = np.zeros(len(room), np.int64)
        for model in self._models_read():
            dtypes[model] = self.models.read_into(room[model], model, block.name, block.start, block.stop)
            if shard is not None:
                shard.keep_input(model, block, room[model])
        matrix = self.models.matrix(block.name)
        keys = [mask_key(self.parameters.seed, role, matrix) for role in self.roles]
        thresholds = self._mask_thresholds.get(matrix, [None] * len(self.roles))
        return StoredBlock(
            block.start,
            block.stop - block.start,
            room,
            dtypes,
            np.array(keys, np.int64).view(np.uint64),
            np.array([-1 if threshold is None else threshold for threshold in thresholds], np.float32),
        )

    def _models_read(self) -> Iterable[int]:
        return range(0 if self.parameters.reads_pretrained else 1, len(self.models.models))

    def _read_ahead(self, block: Block) -> None:
        for model in self._models_read() if block.name in self._merged else (BASE,):
            self.models.read_ahead(model, block.name, block.start, block.stop)

    def _copy(self, block: Block, dtype: str, output: np.ndarray) -> None:
        """Copy the pretrained model's values: its bytes, unless they are saved in another dtype."""
        stored = self.models.stored_tensor(BASE, block.name)
        if dtype == stored.dtype:
            output[:] = self.models.read_copy(block.name, block.start, block.stop)
            if is_floating(dtype) and not _holds_finite(output, dtype):
                raise not_finite_error(stored.file, block.name)
            return
        values = self.models.read_float32(BASE, block.name, block.start, block.stop)
        self._check_finite(0 if encode(values, FLOATING_CODES[dtype], 0, output) else -1, block.name, dtype)

    def _check_finite(self, code: int, name: str, dtype: str = "") -> None:
        """Raise UserError for a code of `block_kernels.merge_block` and the like that is not 0."""
        if code > 0:
            model = (code & -code).bit_length() - 1
            raise not_finite_error(self.models.stored_tensor(model, name).file, name)
        if code < 0:
            raise UserError(
                f"tensor {name}: the merged values do not fit into {LONG_NAMES[dtype]}; choose a smaller "
                "--scaling_coefficient or --dtype float32"
            )

    def _blocks(self, names: Iterable[str]) -> list[Block]:
        return [
            Block(name, start, min(start + self._block_size, self.models.forms[name].numel))
            for name in names
            for start in range(0, self.models.forms[name].numel, self._block_size)
        ]

    def _pieces(self, names: Sequence[str], number: int, size: int) -> list[Block]:
        """About `number` blocks of `size` values or fewer, evenly spaced over some parameters together."""
        total = sum(self.models.forms[name].numel for name in names)
        distance = max(total // number, 1)
        pieces, before = {}, 0
        size = min(size, self._block_size)
        for name in names:
            numel = self.models.forms[name].numel
            for place in range(-before % distance, numel, distance):
                start = min(place // size * size, max(numel - size, 0))
                pieces[Block(name, start, min(start + size, numel))] = None
            before += numel
        return list(pieces)


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
            self._left += -(-merge.models.forms[name].numel // merge._block_size)
        self._sums = np.zeros((self._left, Sums.width(len(merge.roles))))
        self._inputs = np.zeros((self._models, self._left, DIGEST_SIZE), np.uint8)
        self._outputs = np.zeros((self._left, DIGEST_SIZE), np.uint8)

    def _place(self, block: Block) -> int:
        return self._first[block.name] + block.start // self._merge._block_size

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
        own = slice(first, first - (-self._merge.models.forms[name].numel // self._merge._block_size))
        merged = name in self._merge._merged
        read = set(self._merge._models_read()) if merged else set()
        inputs = [
            tensor_digest(self._inputs[model, own]) if model in read and self._is_whole(model, name) else None
            for model in range(self._models)
        ]
        sums = np.add.reduce(self._sums[own], axis=0)
        return TensorReport(sums.tolist(), inputs, tensor_digest(self._outputs[own]))

    def _is_whole(self, model: int, name: str) -> bool:
        """Whether a model's blocks of a parameter are the stretches of one stored tensor."""
        models = self._merge.models
        return (
            self._merge._block_size == STRETCH
            and not models.models[model].is_adapter
            and not models.has_different_rows(model, name)
        )
