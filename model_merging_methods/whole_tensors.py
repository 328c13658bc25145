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
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE
from model_merging_methods.checkpoints.tensor_names import is_stored_transposed
from model_merging_methods.kernels.arithmetic import CompiledArithmetic, TensorNumbers
from model_merging_methods.kernels.block_kernels import Sums, decode
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.method import MaskPlace, Sees, Tensors
from model_merging_methods.model_blocks import KeepInput, ModelBlocks
from model_merging_methods.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

# float32 values for each value of a parameter that a mask of one model needs: in torch, ranks and probabilities.
_MASKING, _MASKING_COMPILED = 14, 6
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

    def _peak(self, name: str) -> int:
        """Bytes for one tensor: its values in all models and in the result, and what the formula needs besides."""
        parameters, models = self._blocks.parameters, len(self._blocks.roles)
        shape, numel = self._shape(name), self._blocks.numel(name)
        rows, columns = shape if len(shape) == 2 else (numel, 1)
        method = parameters.declared
        needed = 5 * models * numel if method.sees is Sees.GRAM else method.memory(rows, columns, models)
        if parameters.mask is not None:
            on_cpu = self._blocks.device == "cpu"
            needed = max(needed, (_MASKING_COMPILED if on_cpu else _MASKING) * numel)
        return 4 * ((models + 2) * numel + math.ceil(needed))

    def _shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape as formulas see it."""
        shape = tuple(self._blocks.models.forms[name].shape) or (1,)
        return shape[::-1] if self._is_transposed(name) else shape

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until a tensor fits beside those that are being merged."""
        with self._budget.reserved(self._peak(name)):
            yield

    def read(
        self, name: str, keep_input: KeepInput | None = None, sums: Callable[[Block], Sums] | None = None
    ) -> np.ndarray:
        """All models' values of a parameter, float32 [K + 1, n]; θ0 as zeros if it is not read. Each block is compared
        into `sums`."""
        blocks = self._blocks
        values = np.zeros((len(blocks.roles) + 1, blocks.numel(name)), np.float32)
        room = blocks.new_room()
        no_sums = Sums.of(np.zeros(Sums.width(len(blocks.roles))), len(blocks.roles))
        for block in blocks.blocks([name]):
            stored = blocks.read(block, room, keep_input)
            blocks.check_finite(self._comparing.compare(stored, sums(block) if sums else no_sums), name)
            for model in blocks.models_read():
                decode(stored.stored[model], stored.dtypes[model], 0, values[model, block.start : block.stop])
        return values

    def merge(self, name: str, values: np.ndarray, statistics: Statistics) -> np.ndarray:
        """The merged values of a parameter: float32 [n]."""
        from model_merging_methods.kernels.torch_arithmetic import merged_by_vectors, merged_values, one_thread

        parameters = self._blocks.parameters_at(name)
        with one_thread():
            x = self.tensors(name, values, statistics)
            merge = merged_by_vectors if parameters.declared.sees is Sees.GRAM else merged_values
            merged = merge(parameters, x)
            if parameters.declared.sees is Sees.TENSOR:
                self._note_distance(x, merged)
            merged = merged.reshape(x.shape)
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

    def _note_distance(self, x: Tensors, merged: "Tensor") -> None:
        largest = max(float(delta.norm()) for delta in x.deltas)
        distance = float((merged - x.base).norm())
        with self._lock:
            if distance > 0:
                self._farthest = max(self._farthest, (distance / largest if largest else math.inf, x.name))

    def _is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out)."""
        return is_stored_transposed(name, self._blocks.models.models[BASE].config)

    def tensors(self, name: str, values: np.ndarray, statistics: Statistics) -> Tensors:
        """A parameter as the method's formula sees it: in its shape, or flat for BLOCK."""
        import torch

        parameters, numbers = self._blocks.parameters_at(name), self._blocks.numbers(name, statistics)
        method, mask = parameters.declared, parameters.mask
        loaded = torch.from_numpy(values).to(self._blocks.device).unflatten(1, numbers.shape or (1,))
        if self._is_transposed(name):
            loaded = loaded.transpose(1, 2)
        numbers = replace(numbers, shape=self._shape(name))
        shape = (-1,) if method.sees is Sees.BLOCK else numbers.shape
        base, *models = loaded
        has_deltas = False
        if mask is not None:
            has_deltas = mask.masks_deltas
            for number, model in enumerate(models):
                if has_deltas:
                    model -= base
                model.copy_(self._masked(model, number, numbers))
            if has_deltas and mask.declared.rounds(mask.values):
                has_deltas = False
                for model in models:
                    model += base
        if not has_deltas and method.reads_base_with(parameters.values) and not method.uses_weights:
            has_deltas = True
            for model in models:
                model -= base
        models = [model.reshape(shape) for model in models]
        known = {"task_vectors" if has_deltas else "weights": models}
        return Tensors(
            name, numbers.shape, 0, base.reshape(shape), ratios=numbers.ratios, statistics=numbers.statistics, **known
        )

    def _masked(self, values: "Tensor", model: int, numbers: TensorNumbers) -> "Tensor":
        mask = self._blocks.parameters_at(numbers.name).mask
        place = MaskPlace(numbers.shape, 0, self._blocks.mask_keys(numbers.name)[model])
        return mask.declared.formula(values, place, **mask.options_of_model(model))


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
