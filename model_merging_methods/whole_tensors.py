"""Merges that need whole tensors: a method or a mask that sees more than a stretch.

Tensors are merged side by side while their values fit into the memory that the largest one takes. Each uses one thread
of torch, so that the number of threads changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING

import numpy as np

from model_merging_methods.kernels.arithmetic import CompiledArithmetic, TensorNumbers
from model_merging_methods.kernels.block_kernels import Sums, decode
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.method import MaskPlace, Sees, Tensors
from model_merging_methods.model_blocks import KeepInput, ModelBlocks
from model_merging_methods.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor


class WholeTensors:
    """The merge's parameters, each as a whole."""

    def __init__(self, blocks: ModelBlocks):
        self._blocks = blocks
        self._budget = _Budget(max((blocks.numel(name) for name in blocks.merged_names), default=0))
        # On a GPU as well, the models are compared where they are read.
        self._comparing = CompiledArithmetic(blocks.parameters, len(blocks.roles))

    @property
    def memory(self) -> int:
        """Bytes of the largest tensor of all models and of the result, in float32."""
        return 4 * (len(self._blocks.roles) + 2) * self._budget.largest

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until a tensor fits beside those that are being merged."""
        with self._budget.reserved(self._blocks.numel(name)):
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

        parameters = self._blocks.parameters
        with one_thread():
            x = self.tensors(name, values, statistics)
            merge = merged_by_vectors if parameters.declared.sees is Sees.GRAM else merged_values
            return merge(parameters, x).reshape(-1).cpu().contiguous().numpy()

    def tensors(self, name: str, values: np.ndarray, statistics: Statistics) -> Tensors:
        """A parameter as the method's formula sees it: in its shape, or flat for BLOCK."""
        import torch

        parameters, numbers = self._blocks.parameters, self._blocks.numbers(name, statistics)
        method, mask = parameters.declared, parameters.mask
        shape = (-1,) if method.sees is Sees.BLOCK else numbers.shape
        base, *models = torch.from_numpy(values).to(self._blocks.device)
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
        mask = self._blocks.parameters.mask
        place = MaskPlace(numbers.shape, 0, self._blocks.mask_keys(numbers.name)[model])
        return mask.declared.formula(values.reshape(numbers.shape), place, **mask.options_of_model(model)).reshape(-1)


class _Budget:
    """Memory for values of tensors, as many as the largest tensor has. A tensor always fits if it is alone."""

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
