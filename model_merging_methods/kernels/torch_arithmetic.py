"""Block arithmetic in torch, using the plain formulas: on a GPU, or on the CPU for a method without a compiled kernel.

A block's stored bytes are copied to the device unchanged, and the merged bytes come back with all sums in one array.
Each call uses its own lane: a stream, so that nothing waits for copies and computations of other threads, and
page-locked memory, which lets copies run in parallel with the arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from model_merging_methods.kernels.arithmetic import NO_NUMBERS, TensorNumbers, mask_rates
from model_merging_methods.kernels.counting_kernels import Brackets, Undecided
from model_merging_methods.kernels.kernel_plan import StoredBlock, Sums
from model_merging_methods.kernels.magnitude_thresholds import BlockCounts
from model_merging_methods.kernels.mask_weights import apply_mask, magnitude_keep_mask, random_drop_mask
from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.method import Sees, Tensors, WholeTensor
from model_merging_methods.methods.ramplus_tl import count_changes
from model_merging_methods.stretches import STRETCH
from model_merging_methods.weighted_sums import weighted_sum

_DTYPES = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32, F64: torch.float64}
_ALIGNMENT = 8  # bytes, of the largest dtype that is fetched


class TorchArithmetic:
    """The formulas, for a merge of `models` fine-tuned models on a device, cpu or cuda. Its methods are those of
    `CompiledArithmetic`."""

    def __init__(self, parameters: MergeParameters, models: int, device: str):
        self._parameters = parameters
        self._mask = parameters.mask
        self._masks_deltas = self._mask is not None and self._mask.masks_deltas
        self._models = models
        self._device = device
        self._idle_lanes: list[_Lane] = []
        self._threads_of_torch = torch.get_num_threads()

    def room(self, rows: int, size: int) -> np.ndarray:
        """Memory for stored blocks: uint8 [rows, size], page-locked for a GPU."""
        return torch.empty((rows, size), dtype=torch.uint8, pin_memory=self._device == "cuda").numpy()

    def merge(
        self, numbers: TensorNumbers, block: StoredBlock, output_dtype: int, output: np.ndarray, sums: Sums
    ) -> int:
        with self._lane() as lane:
            weights = self._load(block)
            sums_found, found = self._new_sums()
            self._compare(weights, found)
            masked, deltas, found.models[:, 2] = self._masked(block, weights)
            x = self._tensors(numbers, block.start, masked, deltas)
            for deltas, threshold, of_model in zip(
                x.deltas, numbers.statistics.get("trim_thresholds", ()), found.models, strict=False
            ):
                of_model[3] = (deltas.abs() >= threshold).sum()
            merged = merged_values(self._parameters, x).to(_DTYPES[output_dtype])
            raw, sums_found, finite, fits = lane.fetch(
                merged.view(torch.uint8), sums_found, weights.isfinite().all(1), merged.isfinite().all()
            )
            output[:] = raw
            self._add(sums_found, sums)
            return _bits(~finite) if not finite.all() or fits else -1

    def compare(self, block: StoredBlock, sums: Sums) -> int:
        with self._lane() as lane:
            weights = self._load(block)
            numbers, found = self._new_sums()
            self._compare(weights, found)
            numbers, finite = lane.fetch(numbers, weights.isfinite().all(1))
            self._add(numbers, sums)
            return _bits(~finite)

    def magnitudes(self, block: StoredBlock, masked: bool) -> tuple[int, np.ndarray]:
        with self._lane() as lane:
            weights = self._load(block)
            magnitudes, finite = lane.fetch(
                self._values_to_count(block, weights, masked).abs(), weights.isfinite().all(1)
            )
            return _bits(~finite), magnitudes.copy()

    def count(self, block: StoredBlock, brackets: Brackets, masked: bool, room: Undecided) -> tuple[int, BlockCounts]:
        """As `CompiledArithmetic.count`, with the undecided values in any order. Only NaNs are reported, because
        differences of finite numbers may be infinite."""
        with self._lane() as lane:
            weights = self._load(block)
            values = self._values_to_count(block, weights, masked)
            lows, highs, shifts = torch.from_numpy(np.stack(brackets)[:, :, None]).to(self._device, non_blocking=True)
            patterns = values.view(torch.int32) & 0x7FFFFFFF  # in the order of the magnitudes
            below_and_up_to = torch.stack([(patterns < lows).sum(1), (patterns <= highs).sum(1)], 1)

            inside = (patterns >= lows) & (patterns < highs)
            undecided = inside.sum(0, dtype=torch.int32)
            signs_trimmed = self._signs(values.where(patterns >= highs, 0))
            signs_kept = self._signs(values.where(patterns >= lows, 0))
            decided_signs = signs_trimmed.where(undecided == 0, 0).sum(dtype=torch.float64)

            models, positions = inside.nonzero(as_tuple=True)
            alone = undecided[positions] == 1
            shared = (undecided > 1).nonzero().squeeze(1)
            *noted, below_and_up_to, decided_signs, not_finite = lane.fetch(
                models.to(torch.int16),
                ((patterns - lows) >> shifts)[models, positions],
                (signs_kept[positions] * alone).to(torch.int8),
                (signs_trimmed[positions] * alone).to(torch.int8),
                values[:, shared[: len(room.values)]].T,
                below_and_up_to,
                decided_signs,
                _not_numbers(weights, values),
            )
            for place, what in zip(room, noted, strict=True):
                place[: len(what)] = what
            counts = BlockCounts(below_and_up_to.copy(), room, int(decided_signs), len(models), len(shared))
            return _bits(not_finite), counts

    def count_histogram(
        self, block: StoredBlock, brackets: Brackets, masked: bool, counts: np.ndarray, histograms: np.ndarray
    ) -> int:
        with self._lane() as lane:
            weights = self._load(block)
            values = self._values_to_count(block, weights, masked)
            lows, highs, shifts = torch.from_numpy(np.stack(brackets)[:, :, None]).to(self._device, non_blocking=True)
            patterns = values.view(torch.int32) & 0x7FFFFFFF
            inside = (patterns >= lows) & (patterns < highs)
            models, _ = inside.nonzero(as_tuple=True)
            bins = ((patterns - lows) >> shifts)[inside] + models * histograms.shape[1]
            found, added, not_finite = lane.fetch(
                torch.stack([(patterns < lows).sum(1), (patterns <= highs).sum(1)], 1),
                torch.bincount(bins, minlength=histograms.size),
                _not_numbers(weights, values),
            )
            counts += found
            histograms += added.reshape(histograms.shape)
            return _bits(not_finite)

    def note_candidates(
        self, block: StoredBlock, models: np.ndarray, brackets: Brackets, masked: bool, room: np.ndarray
    ) -> tuple[int, np.ndarray, list[np.ndarray]]:
        with self._lane() as lane:
            weights = self._load(block)
            values = self._values_to_count(block, weights, masked)
            lows, highs, shifts = torch.from_numpy(np.stack(brackets)[:, :, None]).to(self._device, non_blocking=True)
            patterns = values.view(torch.int32)[torch.from_numpy(models).to(self._device)] & 0x7FFFFFFF
            inside = (patterns >= lows) & (patterns < highs)
            counts, bins, not_finite = lane.fetch(
                torch.stack([(patterns < lows).sum(1), inside.sum(1), (patterns <= highs).sum(1)], 1),
                ((patterns - lows) >> shifts)[inside],
                _not_numbers(weights, values),
            )
            ends = np.cumsum(counts[:, 1])[:-1]
            return _bits(not_finite), counts.copy(), np.split(bins.copy(), ends)

    def place_of_equal(self, block: StoredBlock, masked: bool, model: int, threshold: float, number: int) -> int:
        _, magnitudes = self.magnitudes(block, masked)
        places = np.flatnonzero(magnitudes[model] == np.float32(threshold))
        return int(places[number - 1]) if number <= len(places) else -1

    def gram(self, block: StoredBlock, gram: np.ndarray) -> int:
        with self._lane() as lane:
            weights = self._load(block)
            masked, deltas, _ = self._masked(block, weights)
            x = masked[1:]
            if self._parameters.declared.reads_base_with(self._parameters.values):
                x = x - masked[0] if deltas is None else deltas
            x = x.double()
            products, finite = lane.fetch(x @ x.T, weights.isfinite().all(1))
            gram += products
            return _bits(~finite)

    def view(
        self, numbers: TensorNumbers, block: StoredBlock, function: Callable[[Tensors], Tensor]
    ) -> tuple[int, np.ndarray]:
        """A function of a block's masked models, after the code of their finiteness."""
        with self._lane() as lane:
            weights = self._load(block)
            masked, deltas, _ = self._masked(block, weights)
            x = self._tensors(numbers, block.start, masked, deltas)
            result, finite = lane.fetch(function(x), weights.isfinite().all(1))
            return _bits(~finite), result.copy()

    def mask_sums(self, block: StoredBlock, sums: np.ndarray) -> int:
        with self._lane() as lane:
            weights = self._load(block)
            magnitudes = (weights[1:] - weights[0] if self._masks_deltas else weights[1:]).abs().double()
            kept = magnitudes * self._kept(block, weights)
            found, finite = lane.fetch(torch.stack([magnitudes.sum(1), kept.sum(1)], 1), weights.isfinite().all(1))
            sums += found
            return _bits(~finite)

    def count_changes(self, block: StoredBlock, counts: np.ndarray) -> int:
        epsilon = self._parameters.values["epsilon"]
        code, found = self.view(NO_NUMBERS, block, lambda x: count_changes(x.deltas, epsilon))
        counts += found
        return code

    def _tensors(self, numbers: TensorNumbers, start: int, weights: Tensor, deltas: Tensor | None) -> Tensors:
        return Tensors(
            numbers.name,
            numbers.shape,
            start,
            weights[0],
            list(weights[1:]),
            None if deltas is None else list(deltas),
            ratios=numbers.ratios,
            statistics=numbers.statistics,
        )

    @contextmanager
    def _lane(self) -> Iterator["_Lane"]:
        """A lane that no other thread uses meanwhile. Lanes are kept, because every pass starts new threads."""
        try:
            lane = self._idle_lanes.pop()
        except IndexError:
            lane = _Lane(self._device)
        if lane.stream is None:
            torch.set_num_threads(1)  # in this thread: other threads work on other blocks already
            try:
                yield lane
            finally:
                torch.set_num_threads(self._threads_of_torch)
        else:
            with torch.cuda.stream(lane.stream):
                yield lane
        self._idle_lanes.append(lane)

    def _load(self, block: StoredBlock) -> Tensor:
        """θ0 … θK as float32 [K + 1, size] on the device; θ0 as zeros where it is not read."""
        weights = torch.empty((self._models + 1, block.size), device=self._device)
        if not self._parameters.reads_base:
            weights[0] = 0
        for model in range(0 if self._parameters.reads_base else 1, self._models + 1):
            dtype = _DTYPES[int(block.dtypes[model])]
            raw = torch.from_numpy(block.stored[model, : block.size * dtype.itemsize])
            weights[model] = raw.to(self._device, non_blocking=True).view(dtype)
        return weights

    def _new_sums(self) -> tuple[Tensor, Sums]:
        """Zeros on the device, float64, and the view of them as sums."""
        numbers = torch.zeros(Sums.width(self._models), dtype=torch.float64, device=self._device)
        return numbers, Sums.of(numbers, self._models)

    def _add(self, numbers: np.ndarray, sums: Sums) -> None:
        for total, part in zip(sums, Sums.of(numbers, self._models), strict=True):
            total += part

    def _compare(self, weights: Tensor, found: Sums) -> None:
        """Put the sums of unmasked models into `found`. Products are rounded to float32 and added in float64."""
        reads_pretrained = self._parameters.reads_base
        x = weights[1:] - weights[0] if reads_pretrained else weights[1:]
        found.whole[0] = (weights[0] * weights[0]).sum(dtype=torch.float64)
        found.whole[1] = x.shape[1]
        found.models[:, 0] = (x * x).sum(1, dtype=torch.float64)
        found.models[:, 1] = (x == 0).sum(1)
        for i, k in combinations(range(self._models), 2):
            products = x[i] * x[k]
            found.pairs[i, k, 0] = products.sum(dtype=torch.float64)
            if reads_pretrained:
                found.pairs[i, k, 1] = (products < 0).sum()
            else:
                differences = x[i] - x[k]
                found.pairs[i, k, 2] = (differences * differences).sum(dtype=torch.float64)
                found.pairs[i, k, 3] = (differences == 0).sum()

    def _kept(self, block: StoredBlock, weights: Tensor) -> Tensor:
        """Which values the mask keeps: bool [K, size]."""
        values = weights[1:] - weights[0] if self._masks_deltas else weights[1:]
        if self._mask.declared.keeps is not None:
            numbers = block.mask_numbers.tolist()
            return torch.stack(
                [magnitude_keep_mask(x, block.start, own) for x, own in zip(values, numbers, strict=True)]
            )
        keys, stop = block.mask_keys.view(np.int64).tolist(), block.start + block.size
        rates = mask_rates(self._mask, self._models)
        return ~torch.stack(
            [
                random_drop_mask(key, block.start, stop, rate, self._device)
                for key, rate in zip(keys, rates, strict=True)
            ]
        )

    def _masked(self, block: StoredBlock, weights: Tensor) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """The weights after the mask, if there is one; the masked task vectors, unless they follow from these by
        subtraction; and how many values the mask keeps of each model (int64 [K]; 0 without a mask)."""
        if self._mask is None:
            return weights, None, 0
        values = weights[1:] - weights[0] if self._masks_deltas else weights[1:]
        kept, rescales = self._kept(block, weights), self._mask.values.get("use_weight_rescale", False)
        rates = mask_rates(self._mask, self._models)
        masked = torch.stack([apply_mask(*of_model, rescales) for of_model in zip(values, ~kept, rates, strict=True)])
        masked *= masked.new_tensor(block.mask_numbers[:, 4]).unsqueeze(1)
        finetuned = torch.cat([weights[:1], weights[0] + masked if self._masks_deltas else masked])
        rounds = not self._masks_deltas or self._mask.declared.rounds(self._mask.values)
        return finetuned, None if rounds else masked, kept.sum(1)

    def _values_to_count(self, block: StoredBlock, weights: Tensor, masked: bool) -> Tensor:
        weights, deltas, _ = self._masked(block, weights) if masked else (weights, None, 0)
        if not (self._parameters.reads_base and (masked or self._masks_deltas)):
            return weights[1:]
        return weights[1:] - weights[0] if deltas is None else deltas

    def _signs(self, trimmed: Tensor) -> Tensor:
        return weighted_sum(trimmed, [1.0] * self._models).sign()


def merged_values(parameters: MergeParameters, x: Tensors | WholeTensor) -> Tensor:
    """The formula's values. For a GRAM method, `x.ratios` are its coefficients."""
    method = parameters.declared
    if method.sees is Sees.GRAM:
        if not method.reads_base_with(parameters.values):
            return weighted_sum(x.finetuned, x.ratios)
        return x.base + weighted_sum(x.deltas, x.ratios)
    return method.formula(x, **parameters.formula_options(x.number_of_models))


def merged_in_stretches(parameters: MergeParameters, x: Tensors) -> Tensor:
    """The values of a BLOCK method, written over θ0, in stretches that stay in a CPU's cache."""
    for start in range(0, x.base.numel(), STRETCH):
        part = slice(start, start + STRETCH)
        models = {
            what: values and [model[part] for model in values]
            for what, values in (("weights", x.weights), ("task_vectors", x.task_vectors))
        }
        x.base[part] = merged_values(parameters, replace(x, start=x.start + start, base=x.base[part], **models))
    return x.base


def merged_by_vectors(parameters: MergeParameters, x: Tensors) -> Tensor:
    """The values of a GRAM method whose vectors are the rows, columns or all of a whole tensor."""
    method, options = parameters.declared, parameters.formula_options(x.number_of_models)
    reads_base = method.reads_base_with(options)
    vectors = torch.stack(list(x.deltas if reads_base else x.finetuned))
    by = method.vectors(options)
    if by == "tensor" or x.base.dim() == 1:
        parts = vectors.reshape(len(vectors), 1, -1)
    else:
        parts = vectors.flatten(1, -2) if by == "rows" else vectors.flatten(2).transpose(1, 2)
    gram = torch.einsum("imn,kmn->mik", parts.double(), parts.double())
    products = gram.cpu().numpy()
    coefficients = (
        method.formula(products[0], **options)[None] if by == "tensor" else method.formula(products, **options)
    )
    merged = weighted_sum(parts, torch.from_numpy(coefficients).to(vectors).T.unsqueeze(2))
    if by == "columns" and x.base.dim() > 1:
        merged = merged.T
    merged = merged.reshape(x.base.shape)
    return x.base + merged if reads_base else merged


class _Lane:
    """A stream of the GPU, if the device is one, and memory of the host for results."""

    def __init__(self, device: str):
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self._memory = self._new_memory(0)

    def fetch(self, *tensors: Tensor) -> list[np.ndarray]:
        """Tensors of the device as arrays on the host, valid until the lane's next use. Waits only for this lane."""
        places = [0]
        for tensor in tensors:
            places.append(places[-1] + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
        if places[-1] > len(self._memory):
            self._memory = self._new_memory(places[-1])
        fetched = []
        for tensor, place in zip(tensors, places[:-1], strict=True):
            fetched.append(self._memory[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            fetched[-1].copy_(tensor, non_blocking=True)
        if self.stream is not None:
            self.stream.synchronize()
        return [tensor.numpy() for tensor in fetched]

    def _new_memory(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.stream is not None)


def _not_numbers(weights: Tensor, values: Tensor) -> Tensor:
    """Which of θ0 … θK cause NaNs in `values` (float32 [K, size]): bool [K + 1]."""
    is_nan = values.isnan()
    by_pretrained = is_nan & ~weights[0].isfinite()
    return torch.cat([by_pretrained.any().reshape(1), (is_nan & ~by_pretrained).any(1)])


def _bits(flags: np.ndarray) -> int:
    """A bit for each flag that is set, the first the lowest."""
    return sum(1 << place for place in np.flatnonzero(flags).tolist())


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's sums and products on the CPU depend on the number of its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
