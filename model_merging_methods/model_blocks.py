"""The blocks of a merge's models: which parameters are merged, and how a stretch of all models is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE, AlignedModels
from model_merging_methods.checkpoints.checkpoint_folder import not_finite_error
from model_merging_methods.checkpoints.tensor_names import count_layers, layer_of
from model_merging_methods.kernels.arithmetic import CompiledArithmetic, TensorNumbers, open_arithmetic
from model_merging_methods.kernels.block_passes import Block, for_every_block
from model_merging_methods.kernels.kernel_plan import StoredBlock
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES, LONG_NAMES, is_floating
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import mask_key
from model_merging_methods.statistics import Statistics
from utils.content_hashes import STRETCH
from utils.errors import UserError
from utils.machine import available_cores
from utils.safetensors_files import ITEM_SIZES

if TYPE_CHECKING:
    from model_merging_methods.kernels.torch_arithmetic import TorchArithmetic

BLOCK_SIZE = STRETCH
EVERY_VALUE, NO_VALUE = (-1.0, -1), (inf, -1)  # sets of largest magnitudes: a threshold, and the last equal to it
KEEP_ALL = (*EVERY_VALUE, *NO_VALUE, 1.0)  # the numbers of a mask
_ITEM_SIZES = {code: ITEM_SIZES[dtype] for dtype, code in FLOATING_CODES.items()}

# Called with a model's number, a block and the stored bytes, as they are read.
KeepInput = Callable[[int, Block, np.ndarray], None]


class ModelBlocks:
    """The aligned models of a merge, in blocks.

    `roles` name the fine-tuned models in their order (such as `math`); random masks depend on them. `device` is cpu or
    cuda. `own_parameters` are those of tensors whose options differ from the merge's. `mask_numbers`
    (`kernel_plan.StoredBlock`) are set by the first passes of a mask that needs them.
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
        self._own_parameters = own_parameters
        self.device = device
        copied = {models.matrix(name) for name in models.forms if self._is_kept(name)} | models.kept
        self.merged = frozenset(
            name
            for name, form in models.forms.items()
            if is_floating(form.dtype) and models.matrix(name) not in copied and name not in copied
        )
        # Each value once: a matrix that is written under two names counts under one of them.
        self.merged_names = [name for name in models.forms if name in self.merged and name not in models.same_as]
        self._arithmetic_of = cache(lambda own: open_arithmetic(device, own, len(roles)))
        self._in_layer = cache(self._with_ratios_in_layer)
        self.threads = threads or len(available_cores())
        self.block_size = block_size
        self.mask_numbers: Mapping[str, Sequence[Sequence[float]]] = {}

    def _is_kept(self, name: str) -> bool:
        """Whether a parameter stays as in the pretrained model."""
        merges = self.parameters.declared.merges(name, tuple(self.models.forms[name].shape))
        return not merges or self.parameters.excludes(name)

    def numel(self, name: str) -> int:
        return self.models.forms[name].numel

    def parameters_at(self, name: str) -> MergeParameters:
        """The merge's parameters, with a tensor's own options and, if they differ by layer, ratios."""
        own = self._own_parameters.get(self.models.matrix(name), self.parameters)
        if own.mixup is None or not own.mixup.by_layer:
            return own
        return self._in_layer(own, layer_of(name))

    def _with_ratios_in_layer(self, parameters: MergeParameters, layer: int | None) -> MergeParameters:
        last = count_layers(self.models.forms) - 1
        x = layer / last if layer and last else 0.0
        return replace(parameters, mixup=parameters.mixup.at(x))

    def arithmetic(self, name: str) -> CompiledArithmetic | TorchArithmetic:
        """The arithmetic of a tensor."""
        return self._arithmetic_of(self.parameters_at(name))

    def numbers(self, name: str, statistics: Statistics) -> TensorNumbers:
        """The numbers of one tensor's formula: M3's ratios, or the coefficients of a GRAM method."""
        parameters, found = self.parameters_at(name), statistics.at(self.models.matrix(name))
        ratios = parameters.mixup.ratios if parameters.mixup else None
        if "gram" in found:
            options = parameters.formula_options(len(self.roles))
            coefficients = parameters.declared.formula(np.array(found["gram"]), **options)
            ratios = tuple(float(np.float32(coefficient)) for coefficient in coefficients)
        return TensorNumbers(name, tuple(self.models.forms[name].shape), ratios, found)

    def for_every(
        self, blocks: Sequence[Block], new_worker: Callable[[], Callable[[Block], None]], title: str | None = None
    ) -> None:
        """A pass over blocks, with read-ahead and all threads."""
        for_every_block(blocks, new_worker, self.threads, self.read_ahead, title)

    def new_room(self, size: int | None = None) -> np.ndarray:
        return self._arithmetic_of(self.parameters).room(
            len(self.roles) + 1, (size or self.block_size) * self.models.largest_item
        )

    def mask_keys(self, name: str) -> list[int]:
        matrix = self.models.matrix(name)
        return [mask_key(self.parameters.seed, role, matrix) for role in self.roles]

    def read(self, block: Block, room: np.ndarray, keep_input: KeepInput | None = None) -> StoredBlock:
        """A block of all models that the method reads, as stored; each is passed to `keep_input`."""
        dtypes = np.zeros(len(room), np.int64)
        for model in self.models_read():
            dtypes[model] = self.models.read_into(room[model], model, block.name, block.start, block.stop)
            if keep_input is not None:
                keep_input(model, block, room[model])
        return self._stored_block(block, room, dtypes)

    def read_pieces(self, name: str, number: int, size: int, room: np.ndarray) -> StoredBlock:
        """`number` evenly spaced pieces of `size` values of a parameter, joined to one block. It serves as a sample: a
        random mask is that of other positions."""
        last, dtypes = self.numel(name) - size, np.zeros(len(room), np.int64)
        for model in self.models_read():
            filled = 0
            for piece in range(number):
                start = last * piece // max(number - 1, 1)
                dtypes[model] = self.models.read_into(room[model, filled:], model, name, start, start + size)
                filled += size * _ITEM_SIZES[dtypes[model]]
        return self._stored_block(Block(name, 0, number * size), room, dtypes)

    def _stored_block(self, block: Block, room: np.ndarray, dtypes: np.ndarray) -> StoredBlock:
        mask_numbers = self.mask_numbers.get(self.models.matrix(block.name), [KEEP_ALL] * len(self.roles))
        return StoredBlock(
            block.start,
            block.stop - block.start,
            room,
            dtypes,
            np.array(self.mask_keys(block.name), np.int64).view(np.uint64),
            np.array(mask_numbers, np.float64),
        )

    def models_read(self) -> Iterable[int]:
        return range(0 if self.parameters.reads_base else 1, len(self.models.models))

    def read_ahead(self, block: Block) -> None:
        """Have the system start reading a block of all models from the disk."""
        for model in self.models_read() if block.name in self.merged else (BASE,):
            self.models.read_ahead(model, block.name, block.start, block.stop)

    def check_finite(self, code: int, name: str, dtype: str = "") -> None:
        """Raise UserError for a code of `block_kernels.merge_block` and the like that is not 0."""
        if code > 0:
            model = (code & -code).bit_length() - 1
            raise not_finite_error(self.models.stored_tensor(model, name).file, name)
        if code < 0:
            raise UserError(
                f"tensor {name}: the merged values do not fit into {LONG_NAMES[dtype]}; choose a smaller "
                "--scaling_coefficient or --dtype float32"
            )

    def blocks(self, names: Iterable[str], size: int | None = None) -> list[Block]:
        size = size or self.block_size
        return [
            Block(name, start, min(start + size, self.models.forms[name].numel))
            for name in names
            for start in range(0, self.models.forms[name].numel, size)
        ]

    def pieces(self, names: Sequence[str], number: int, size: int) -> list[Block]:
        """About `number` blocks of `size` values or fewer, evenly spaced over some parameters together."""
        total = sum(self.models.forms[name].numel for name in names)
        distance = max(total // number, 1)
        pieces, before = {}, 0
        size = min(size, self.block_size)
        for name in names:
            numel = self.models.forms[name].numel
            for place in range(-before % distance, numel, distance):
                start = min(place // size * size, max(numel - size, 0))
                pieces[Block(name, start, min(start + size, numel))] = None
            before += numel
        return list(pieces)
