"""A parameter in strips of rows: for a method that needs no more at a time, and for a mask that treats each row by
itself, before a method that works on any stretch.

A strip takes a few MB, where the whole parameter takes up to a GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from model_merging_methods.checkpoints.aligned_models import BASE
from model_merging_methods.checkpoints.tensor_names import is_stored_transposed
from model_merging_methods.kernels.arithmetic import TensorNumbers, has_kernel
from model_merging_methods.kernels.stored_values import decode
from model_merging_methods.method import MaskPlace, Sees, Tensors
from model_merging_methods.model_blocks import ModelBlocks
from model_merging_methods.survivors import restoring_factor

if TYPE_CHECKING:
    from model_merging_methods.merge_parameters import Mask

_STRIP = 1 << 19  # values, at least a row


def works_in_strips(blocks: ModelBlocks, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter that formulas see in this shape is stored as rows, one after the other, that can be masked
    and merged strip by strip."""
    parameters = blocks.parameters_at(name)
    method, mask = parameters.declared, parameters.mask
    if blocks.device != "cpu" or is_stored_transposed(name, blocks.models.models[BASE].config):
        return False
    if mask is None:
        return method.in_strips is not None
    return mask.declared.in_rows is not None and method.sees is Sees.BLOCK and len(shape) <= 2


def strip_size(shape: tuple[int, ...]) -> int:
    """The values of a strip."""
    columns = max(shape[-1], 1)
    return max(1, _STRIP // columns) * columns


def read_strips(blocks: ModelBlocks, name: str, shape: tuple[int, ...]) -> Iterator[list[np.ndarray]]:
    """θ0, θ1 … θK strip by strip, each valid until the next (`method.Strips`)."""
    models, size = blocks.models, strip_size(shape)
    stored, rooms = np.empty(size * models.largest_item, np.uint8), np.empty((len(models.models), size), np.float32)
    for place in _places(shape, blocks.numel(name)):
        strips = [room[: place.stop - place.start] for room in rooms]
        for model, values in enumerate(strips):
            decode(stored, models.read_into(stored, model, name, place.start, place.stop), 0, values)
        yield [values.reshape(-1, shape[-1]) for values in strips]


def merged_strips(blocks: ModelBlocks, numbers: TensorNumbers) -> Iterator[np.ndarray]:
    """The merged values of a parameter: float32, in consecutive strips."""
    parameters = blocks.parameters_at(numbers.name)
    if has_kernel(parameters):
        reads_base, arithmetic = _reads_base(blocks, numbers.name), blocks.arithmetic(numbers.name)
        for start, base, masked in _masked_strips(blocks, numbers):
            yield arithmetic.merge_values(numbers, start, base, masked, reads_base)
        return
    from model_merging_methods.kernels.torch_arithmetic import merged_in_stretches, one_thread

    for x in masked_strips(blocks, numbers):
        with one_thread():
            merged = merged_in_stretches(parameters, x)
        yield merged.numpy()


def masked_strips(blocks: ModelBlocks, numbers: TensorNumbers) -> Iterator[Tensors]:
    """A parameter of the masked models, strip by strip."""
    import torch

    known = "task_vectors" if _reads_base(blocks, numbers.name) else "weights"
    about = {"ratios": numbers.ratios, "statistics": numbers.statistics}
    for start, base, masked in _masked_strips(blocks, numbers):
        models = {known: list(torch.from_numpy(masked))}
        yield Tensors(numbers.name, numbers.shape, start, torch.from_numpy(base), **models, **about)


def _reads_base(blocks: ModelBlocks, name: str) -> bool:
    """Whether the method itself reads θ0."""
    parameters = blocks.parameters_at(name)
    return parameters.declared.reads_base_with(parameters.values)


def _masked_strips(blocks: ModelBlocks, numbers: TensorNumbers) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The first position of each strip, θ0 there, and the masked models [K, size]: their task vectors if the method
    reads θ0, else their weights, with those of the first in place of θ0."""
    parameters, name, read = blocks.parameters_at(numbers.name), numbers.name, blocks.models.read_float32
    mask, keys, reads_base = parameters.mask, blocks.mask_keys(name), _reads_base(blocks, name)
    places = list(_places(numbers.shape, blocks.numel(name)))

    def values(model: int, place: slice, base: np.ndarray | None = None) -> np.ndarray:
        """What the mask of a model is applied to."""
        of_model = read(model + 1, name, place.start, place.stop)
        if mask.masks_deltas:
            of_model -= read(BASE, name, place.start, place.stop) if base is None else base
        return of_model

    models = [
        _MaskedModel.of(mask, model, numbers.shape, keys[model], places, partial(values, model))
        for model in range(len(keys))
    ]
    for number, place in enumerate(places):
        base = read(BASE, name, place.start, place.stop) if reads_base or mask.masks_deltas else None
        masked = np.empty((len(models), place.stop - place.start), np.float32)
        for model, of_model in enumerate(models):
            masked[model] = of_model.mask(number, place, values(model, place, base))
            if mask.masks_deltas is not reads_base:
                masked[model] += -base if reads_base else base
        yield place.start, base if reads_base else masked[0], masked


def _places(shape: tuple[int, ...], numel: int) -> Iterator[slice]:
    size = strip_size(shape)
    return (slice(start, min(start + size, numel)) for start in range(0, numel, size))


@dataclass(frozen=True)
class _MaskedModel:
    """The mask of one model in a parameter. kept: for each strip the bits of the values that are left, if a first pass
    drew them to find the `factor` of survivors."""

    mask_rows: Callable[..., np.ndarray]
    options: Mapping[str, Any]
    key: int
    length: int
    kept: list[np.ndarray]
    factor: float = 1.0

    @classmethod
    def of(
        cls,
        mask: Mask,
        model: int,
        shape: tuple[int, ...],
        key: int,
        places: list[slice],
        values: Callable[[slice], np.ndarray],
    ) -> _MaskedModel:
        drawn = cls(mask.declared.in_rows, mask.options_of_model(model), key, shape[-1], [])
        if not mask.declared.restores_sum(mask.values):
            return drawn
        sums, kept = [], []
        for place in places:
            of_strip = values(place)
            sums.append(drawn.draw(place, of_strip))
            kept.append(np.packbits(of_strip != 0))
        factor = restoring_factor(*np.concatenate(sums).sum(axis=0).tolist())
        return cls(drawn.mask_rows, drawn.options, key, drawn.length, kept, factor)

    def draw(self, place: slice, values: np.ndarray) -> np.ndarray:
        """Mask a strip in place. Returns the sums of its rows' magnitudes before and after."""
        rows = values.reshape(-1, self.length)
        return self.mask_rows(rows, MaskPlace(rows.shape, place.start, self.key), **self.options)

    def mask(self, number: int, place: slice, values: np.ndarray) -> np.ndarray:
        """A strip's values, masked in place."""
        if not self.kept:
            self.draw(place, values)
            return values
        values *= np.unpackbits(self.kept[number], count=values.size)
        values *= np.float32(self.factor)
        return values
