"""A chunk of all models, decoded and masked: what every block kernel begins with."""

import numpy as np

from model_merging_methods.kernels.compiling import CHUNK, ZERO, approximate, exact, exact_with_arrays
from model_merging_methods.kernels.kernel_plan import NO_MASK, RANDOM_MASK
from model_merging_methods.kernels.mask_kernels import apply_mask, magnitude_keep_mask, random_keep_mask
from model_merging_methods.kernels.stored_values import all_finite, decode


@exact_with_arrays
def load_chunk(plan, block, first, room, masked):
    """θ0, the models and their task vectors from position `first` of the block on, after the mask if `masked`: views of
    `room`, float32 of (2K + 2) · CHUNK."""
    models = block.stored.shape[0] - 1
    size = min(CHUNK, block.size - first)
    finetuned = room[: models * size].reshape(models, size)
    deltas = room[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
    pretrained = room[2 * models * CHUNK : 2 * models * CHUNK + size]
    load(plan, block, first, pretrained, finetuned, deltas)
    if masked and plan.mask != NO_MASK:
        keep = room[(2 * models + 1) * CHUNK : (2 * models + 1) * CHUNK + size]
        mask(plan, block, first, pretrained, finetuned, deltas, keep, np.zeros((models, 4)))
    return pretrained, finetuned, deltas


@exact
def load(plan, block, first, pretrained, finetuned, deltas):
    """Decode a chunk of all models, and its task vectors if the pretrained model is read."""
    if plan.reads_pretrained:
        decode(block.stored[0], block.dtypes[0], first, pretrained)
    for i in range(finetuned.shape[0]):
        decode(block.stored[i + 1], block.dtypes[i + 1], first, finetuned[i])
    if plan.reads_pretrained:
        task_vectors(pretrained, finetuned, deltas)


@exact
def task_vectors(pretrained, finetuned, deltas):
    """δi = θi − θ0."""
    for i in range(finetuned.shape[0]):
        for j in range(pretrained.size):
            deltas[i, j] = finetuned[i, j] - pretrained[j]


@exact
def mask(plan, block, first, pretrained, finetuned, deltas, keep, sums_of_models):
    """Mask the models in place."""
    for i in range(finetuned.shape[0]):
        values = deltas[i] if plan.masks_deltas else finetuned[i]
        keep_mask(plan, block, first, i, values, keep)
        sums_of_models[i, 2] += sum_of(keep)
        apply_mask(values, keep, plan.divisors[i], np.float32(block.mask_numbers[i, 4]))
        if plan.masks_deltas:
            for j in range(values.size):
                finetuned[i, j] = pretrained[j] + values[j]
    if plan.reads_pretrained and (plan.rounds_masked or not plan.masks_deltas):
        task_vectors(pretrained, finetuned, deltas)


@exact
def keep_mask(plan, block, first, model, values, keep):
    """Fill `keep` with 1 where the mask keeps a model's values from position `first` of the block on, else 0."""
    if plan.mask == RANDOM_MASK:
        random_keep_mask(block.mask_keys[model], block.start + first, plan.mask_rates[model], keep)
    else:
        magnitude_keep_mask(values, block.start + first, block.mask_numbers[model], keep)


@approximate
def sum_of(x):
    total = ZERO
    for j in range(x.size):
        total += x[j]
    return total


@exact
def not_finite_bits(plan, pretrained, finetuned):
    """A bit for each model with values that are not finite."""
    bits = 1 if plan.reads_pretrained and not all_finite(pretrained) else 0
    for i in range(finetuned.shape[0]):
        if not all_finite(finetuned[i]):
            bits |= 2 << i
    return bits


@exact_with_arrays
def load_magnitudes(plan, block, masked, magnitudes):
    """Put |x| of a block into `magnitudes`, float32 [K, size], of the values that `count_block` counts."""
    models = block.stored.shape[0] - 1
    finetuned = np.empty((models, block.size), np.float32)
    deltas = np.empty((models, block.size), np.float32)
    pretrained, keep = np.empty(block.size, np.float32), np.empty(block.size, np.float32)
    load(plan, block, 0, pretrained, finetuned, deltas)
    not_finite = not_finite_bits(plan, pretrained, finetuned)
    if masked and plan.mask != NO_MASK:
        mask(plan, block, 0, pretrained, finetuned, deltas, keep, np.zeros((models, 4)))
    magnitudes[:] = np.abs(deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned)
    return not_finite
