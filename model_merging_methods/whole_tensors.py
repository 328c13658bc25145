"""Merges that need whole tensors: a method or a mask that sees more than a stretch.

Tensors are merged side by side while they fit into the memory that the most demanding one takes. Each uses one thread
of torch, so that the number of threads changes nothing.

A formula gets the weight of a linear layer as (out, in), also where a family stores (in, out), and a scalar as a vector
of one value.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Condition, Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE
from model_merging_methods.checkpoints.tensor_names import is_stored_transposed
from model_merging_methods.kernels.arithmetic import CompiledArithmetic, TensorNumbers
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.kernels.kernel_plan import Sums
from model_merging_methods.kernels.stored_values import decode
from model_merging_methods.method import MaskPlace, Sees, Strips, Tensors, WholeTensor
from model_merging_methods.model_blocks import KeepInput, ModelBlocks
from model_merging_methods.row_strips import masked_strips, merged_strips, read_strips, strip_size, works_in_strips
from model_merging_methods.statistics import LargestOfTensor, Statistics
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# float32 values for each value of a parameter that a mask of one model needs: in torch, ranks and probabilities.
_MASKING, _MASKING_COMPILED = 14, 1
_FAR = 10.0  # merged distance in units of the largest |δi| of a tensor, from which a merge warns


class WholeTensors:
    """The merge's parameters, each as a whole."""

    def __init__(self, blocks: ModelBlocks):
        self._blocks = blocks
        self._budget = _Budget(max(map(self._peak, blocks.merged_names), default=0))
        # On a GPU as well, the models are compared where they are read.
        self._comparing = CompiledArithmetic(blocks.parameters, len(blocks.roles))
        self._farthest, self._lock = (_FAR, ""), Lock()

    @property
    def memory(self) -> int:
        """Bytes that the tensors in work take at most, in all models, in the result and in the formula."""
        return self._budget.largest

    @property
    def bound(self) -> int:
        """Bytes of all models and a result of the largest tensor, in float32: K + 2 times its size."""
        largest = max(map(self._blocks.numel, self._blocks.models.forms), default=0)
        return 4 * (len(self._blocks.roles) + 2) * largest

    def _peak(self, name: str) -> int:
        """Bytes for merging one tensor: whole, or in each thread a strip of all models, and a bit for each value."""
        models, shape = len(self._blocks.roles), self._shape(name)
        if works_in_strips(self._blocks, name, shape) and not self._finds_positions(name):
            of_thread = 4 * (models + 4) * strip_size(shape) + (models + 1) * self._blocks.numel(name) // 8
            return self._blocks.threads * of_thread
        return self._peak_of_whole(name)

    def _finds_positions(self, name: str) -> bool:
        """Whether a statistic needs all values of a parameter together."""
        parameters = self._blocks.parameters_at(name)
        if not any(isinstance(one, LargestOfTensor) for one in parameters.declared.statistics):
            return False
        return min(parameters.formula_options(len(self._blocks.roles))["density"]) < 1

    def _peak_of_whole(self, name: str) -> int:
        """Bytes for one tensor: what the formula holds, with what it reads and the result, and what the mask needs."""
        parameters, models, numel = self._blocks.parameters, len(self._blocks.roles), self._blocks.numel(name)
        shape, method = self._shape(name), parameters.declared
        rows, columns = shape if len(shape) == 2 else (numel, 1)
        needed = {
            Sees.GRAM: (6 * models + 2) * numel,
            Sees.BLOCK: (models + 1) * numel,
            Sees.TENSOR: math.ceil(method.memory(rows, columns, models)),
        }[method.sees]
        if parameters.mask is not None:
            needed += (_MASKING_COMPILED if self._blocks.device == "cpu" and len(shape) <= 2 else _MASKING) * numel
        return 4 * needed

    def _shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape as formulas see it."""
        shape = tuple(self._blocks.models.forms[name].shape) or (1,)
        return shape[::-1] if self._is_transposed(name) else shape

    @contextmanager
    def turn(self, name: str, whole: bool = False) -> Iterator[None]:
        """Wait until a tensor fits beside those that are in work, if it is in work as a whole."""
        in_strips = not whole and works_in_strips(self._blocks, name, self._shape(name))
        with self._budget.reserved(0 if in_strips else self._peak_of_whole(name)):
            yield

    def check(
        self, name: str, keep_input: KeepInput | None = None, sums: Callable[[Block], Sums] | None = None
    ) -> float:
        """Raise UserError if a value of a parameter is not finite. Each block is compared into `sums`. Returns the
        largest |δi|, or |θi| if the merge does not read θ0."""
        blocks, models = self._blocks, len(self._blocks.roles)
        room, squares = blocks.new_room(), np.zeros(models)
        for block in blocks.blocks([name]):
            of_block = sums(block) if sums else Sums.of(np.zeros(Sums.width(models)), models)
            blocks.check_finite(self._comparing.compare(blocks.read(block, room, keep_input), of_block), name)
            squares += of_block.models[:, 0]
        return math.sqrt(squares.max(initial=0))

    def merged(self, name: str, statistics: Statistics, largest: float) -> Iterator[np.ndarray]:
        """The merged values of a parameter: float32, in consecutive pieces. `largest` is what `check` returned."""
        method, n, shape = self._blocks.parameters.declared, self._blocks.numel(name), self._shape(name)
        if not works_in_strips(self._blocks, name, shape):
            merged = self._merge(name, statistics)
            if method.sees is Sees.TENSOR:
                self._note_distance(name, merged, largest)
            yield merged
        elif method.in_strips is not None:
            yield from map(np.ravel, method.in_strips(lambda: read_strips(self._blocks, name, shape), n))
        else:
            numbers = self._blocks.numbers(name, statistics)
            yield from merged_strips(self._blocks, replace(numbers, shape=shape))

    def _merge(self, name: str, statistics: Statistics) -> np.ndarray:
        """The merged values of a parameter as a whole: float32 [n]."""
        from torch.linalg import LinAlgError

        from model_merging_methods.kernels.torch_arithmetic import (
            merged_by_vectors,
            merged_in_stretches,
            merged_values,
            one_thread,
        )

        parameters, numbers = self._blocks.parameters_at(name), self._blocks.numbers(name, statistics)
        with one_thread():
            if parameters.declared.sees is Sees.TENSOR:
                x = self.on_demand(numbers)
                in_strips = parameters.declared.in_strips if self._blocks.device == "cpu" else None
                try:
                    merged = merged_by_strips(in_strips, x) if in_strips else merged_values(parameters, x)
                except LinAlgError as error:
                    remedy = "leave it out with --exclude_param_names_regex, or choose another method"
                    raise UserError(f"tensor {name}: {error}; {remedy}") from None
            else:
                merge = merged_by_vectors if parameters.declared.sees is Sees.GRAM else merged_in_stretches
                merged = merge(parameters, self._tensors(numbers)).reshape(self._shape(name))
            if self._is_transposed(name):
                merged = merged.T
            return merged.reshape(-1).cpu().contiguous().numpy()

    @property
    def warnings(self) -> list[str]:
        """A line if a merged tensor is far from θ0, on the one that is farthest."""
        distance, name = self._farthest
        if not name:
            return []
        return [
            f"tensor {name}: the merge moves it {distance:.3g} times as far from the pretrained model as the fine-tune "
            "that is farthest; choose another method or a smaller --scaling_coefficient"
        ]

    def _note_distance(self, name: str, merged: np.ndarray, largest: float) -> None:
        """Note how far the merged values are from θ0, in units of the largest |δi|."""
        squares, room = 0.0, _Room.of(self._blocks)
        for start in range(0, len(merged), self._blocks.block_size):
            part = merged[start : start + self._blocks.block_size]
            difference = room.values[: len(part)]
            self._read_part(room, BASE, name, start, difference)
            with np.errstate(over="ignore"):
                difference -= part
            squares += float(np.square(difference, dtype=np.float64).sum())
        if squares > 0:
            times = math.sqrt(squares) / largest if largest else math.inf
            with self._lock:
                self._farthest = max(self._farthest, (times, name))

    def _is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out)."""
        return is_stored_transposed(name, self._blocks.models.models[BASE].config)

    def strips(self, numbers: TensorNumbers) -> Iterator[Tensors]:
        """A parameter of the masked models in strips, or as a whole if it does not work in strips."""
        numbers = replace(numbers, shape=self._shape(numbers.name))
        if works_in_strips(self._blocks, numbers.name, numbers.shape):
            yield from masked_strips(self._blocks, numbers)
        else:
            yield self._tensors(numbers)

    def _tensors(self, numbers: TensorNumbers) -> Tensors:
        """A whole parameter of the masked models, for a GRAM method in its shape, for BLOCK flat."""
        name, x = numbers.name, self.on_demand(numbers)
        parameters = self._blocks.parameters_at(name)
        shape = (-1,) if parameters.declared.sees is Sees.BLOCK else x.shape
        reads_base = parameters.declared.reads_base_with(parameters.values)
        models = [model.reshape(shape) for model in (x.deltas if reads_base else x.finetuned)]
        known = {"task_vectors" if reads_base else "weights": models}
        base = x.base if reads_base else models[0]
        return Tensors(
            name, x.shape, 0, base.reshape(shape), ratios=numbers.ratios, statistics=numbers.statistics, **known
        )

    def on_demand(self, numbers: TensorNumbers) -> WholeTensor:
        """A parameter of the masked models."""
        name = numbers.name
        numbers, mask = replace(numbers, shape=self._shape(name)), self._blocks.parameters_at(name).mask

        def read(model: int, as_delta: bool) -> "Tensor":
            if mask is None or model == 0:
                return self._read(name, model, as_delta)
            masked = self._masked(self._read(name, model, mask.masks_deltas), model - 1, numbers)
            if mask.masks_deltas and as_delta and mask.declared.rounds(mask.values):
                base = self._read(name, 0)
                return masked.add_(base).sub_(base)
            if mask.masks_deltas is as_delta:
                return masked
            base = self._read(name, 0)
            return masked.sub_(base) if as_delta else masked.add_(base)

        return WholeTensor(name, numbers.shape, len(self._blocks.roles), read)

    def _read(self, name: str, model: int, as_delta: bool = False) -> "Tensor":
        """θ0 (0) or θi, or δi, in its shape."""
        import torch

        values, room = np.empty(self._blocks.numel(name), np.float32), _Room.of(self._blocks)
        for start in range(0, len(values), self._blocks.block_size):
            part = values[start : start + self._blocks.block_size]
            self._read_part(room, model, name, start, part)
            if as_delta:
                base = room.values[: len(part)]
                self._read_part(room, BASE, name, start, base)
                with np.errstate(over="ignore"):
                    part -= base
        shape = self._shape(name)
        loaded = torch.from_numpy(values).to(self._blocks.device)
        return loaded.view(shape[::-1]).T.contiguous() if self._is_transposed(name) else loaded.view(shape)

    def _read_part(self, room: "_Room", model: int, name: str, start: int, values: np.ndarray) -> None:
        """Fill `values`, a block or less, from position `start` of the parameter on."""
        dtype = self._blocks.models.read_into(room.stored, model, name, start, start + len(values))
        decode(room.stored, dtype, 0, values)

    def _masked(self, values: "Tensor", model: int, numbers: TensorNumbers) -> "Tensor":
        mask = self._blocks.parameters_at(numbers.name).mask
        place = MaskPlace(numbers.shape, 0, self._blocks.mask_keys(numbers.name)[model])
        return mask.declared.formula(values, place, **mask.options_of_model(model))


def merged_by_strips(in_strips: Callable[[Strips, int], Iterator[np.ndarray]], x: WholeTensor) -> "Tensor":
    """A parameter that is not stored in its rows, or masked, by a method's `in_strips`, on the CPU."""
    import torch

    rows = strip_size(x.shape) // x.shape[-1]

    def strips() -> Iterator[tuple[np.ndarray, ...]]:
        models = [model.view(-1, x.shape[-1]).split(rows) for model in (x.base, *x.finetuned)]
        return (tuple(part.numpy() for part in strip) for strip in zip(*models, strict=True))

    return torch.from_numpy(np.concatenate(list(in_strips(strips, math.prod(x.shape))))).view(x.shape)


class _Room(NamedTuple):
    """Room for a block, as stored (uint8) and decoded (float32)."""

    stored: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, blocks: ModelBlocks) -> "_Room":
        size = blocks.block_size
        return cls(np.empty(size * blocks.models.largest_item, np.uint8), np.empty(size, np.float32))


class _Budget:
    """Memory for tensors in work: `largest` bytes. A tensor always fits if it is alone."""

    def __init__(self, largest: int):
        self.largest = largest
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self.largest)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
