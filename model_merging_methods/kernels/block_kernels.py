"""Compiled merging of blocks on the CPU.

A block's values pass through chunks that stay in a core's first cache: decoded to float32, compared with each other,
masked, merged, encoded. Tests compare every kernel with the plain formulas of `methods/` and `mask_weights`, bit for
bit. Compiled array notation, of which formulas and kernels could share one text, took 2 to 29 times as long as these
loops.
"""

import numpy as np

from model_merging_methods.kernels.chunks import load, mask
from model_merging_methods.kernels.compiling import CHUNK, ONE, ZERO, approximate, exact, exact_with_arrays
from model_merging_methods.kernels.kernel_plan import NO_MASK, Sums
from model_merging_methods.kernels.method_kernels import merge_chunk
from model_merging_methods.kernels.stored_values import all_finite, encode


@exact_with_arrays
def merge_block(plan, block, output_dtype, output, sums):
    """Merge a block into `output` (bytes of the dtype with that code), adding to `sums`. If `output` is empty, only
    compare the models.

    Returns 0; or −1 if a merged value does not fit the dtype; or, if models hold values that are not finite, a bit for
    each of them (the first the pretrained model's).
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((6, CHUNK), np.float32)
    not_finite = 0
    fits = True
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained, merged, keep = rows[0, :size], rows[1, :size], rows[2, :size]
        load(plan, block, first, pretrained, finetuned, deltas)
        x = deltas if plan.reads_pretrained else finetuned
        not_finite |= _compare(plan.reads_pretrained, pretrained, finetuned, x, sums)
        if output.size == 0:
            continue
        if plan.mask != NO_MASK:
            mask(plan, block, first, pretrained, finetuned, deltas, keep, sums.models)
        spare = rows[3, :size], rows[4, :size], rows[5, :size]
        merge_chunk(plan, block.start + first, pretrained, finetuned, deltas, merged, *spare, sums)
        fits &= encode(merged, output_dtype, first, output)
    return not_finite if not_finite or fits else -1


@exact_with_arrays
def merge_values(plan, start, pretrained, values, are_deltas, merged):
    """Merge float32 values from position `start` of a tensor on into `merged` [size]: of θ0 [size] and of the models
    [K, size], their task vectors if `are_deltas`, else their weights."""
    models = values.shape[0]
    chunks = np.empty(2 * models * CHUNK, np.float32)
    spare = np.empty((3, CHUNK), np.float32)
    sums = Sums(np.zeros(2), np.zeros((models, 4)), np.zeros((models, models, 4)))
    for first in range(0, merged.size, CHUNK):
        size = min(CHUNK, merged.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        base, own = pretrained[first : first + size], merged[first : first + size]
        for i in range(models):
            for j in range(size):
                deltas[i, j] = values[i, first + j]
                finetuned[i, j] = base[j] + deltas[i, j] if are_deltas else deltas[i, j]
        rows = spare[0, :size], spare[1, :size], spare[2, :size]
        merge_chunk(plan, start + first, base, finetuned, deltas, own, *rows, sums)


@exact_with_arrays
def load_masked(plan, block, first, length, rows, sums):
    """Put `length` values from position `first` of the block on into `rows`, float32 [2K + 1, length or more]: θ0, the
    masked models, and their task vectors if the pretrained model is read. Adds the unmasked models to `sums`.

    Returns a bit for each model with values that are not finite.
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    own = np.empty((2, CHUNK), np.float32)
    not_finite = 0
    for start in range(0, length, CHUNK):
        size = min(CHUNK, length - start)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = own[0, :size]
        load(plan, block, first + start, pretrained, finetuned, deltas)
        x = deltas if plan.reads_pretrained else finetuned
        not_finite |= _compare(plan.reads_pretrained, pretrained, finetuned, x, sums)
        if plan.mask != NO_MASK:
            mask(plan, block, first + start, pretrained, finetuned, deltas, own[1, :size], sums.models)
        rows[0, start : start + size] = pretrained
        for i in range(models):
            rows[1 + i, start : start + size] = finetuned[i]
            if plan.reads_pretrained:
                rows[1 + models + i, start : start + size] = deltas[i]
    return not_finite


@exact
def _compare(reads_pretrained, pretrained, finetuned, x, sums):
    """Add the unmasked models to `sums`; x are the task vectors, or the weights.

    Returns a bit for each model (the first the pretrained one's) with values that are not finite.
    """
    models = x.shape[0]
    not_finite = 0
    sums.whole[1] += x.shape[1]
    if reads_pretrained:
        squares = _sum_of_squares(pretrained)
        sums.whole[0] += squares
        if not np.isfinite(squares) and not all_finite(pretrained):
            not_finite |= 1
    for i in range(models):
        squares, zeros = _model_sums(x[i])
        sums.models[i, 0] += squares
        sums.models[i, 1] += zeros
        if not np.isfinite(squares) and not all_finite(finetuned[i]):
            not_finite |= 2 << i
        for k in range(i + 1, models):
            if reads_pretrained:
                products, conflicts = _task_vector_sums(x[i], x[k])
                sums.pairs[i, k, 0] += products
                sums.pairs[i, k, 1] += conflicts
            else:
                products, distance, equal = _weight_sums(x[i], x[k])
                sums.pairs[i, k, 0] += products
                sums.pairs[i, k, 2] += distance
                sums.pairs[i, k, 3] += equal
    return not_finite


@approximate
def _sum_of_squares(x):
    total = ZERO
    for j in range(x.size):
        total += x[j] * x[j]
    return total


@approximate
def _model_sums(x):
    """Σ x², and how many are 0."""
    squares, zeros = ZERO, ZERO
    for j in range(x.size):
        squares += x[j] * x[j]
        zeros += ONE if x[j] == ZERO else ZERO
    return squares, zeros


@approximate
def _task_vector_sums(x, y):
    """Σ x y, and how many have opposite signs."""
    products, conflicts = ZERO, ZERO
    for j in range(x.size):
        product = x[j] * y[j]
        products += product
        conflicts += ONE if product < ZERO else ZERO
    return products, conflicts


@approximate
def _weight_sums(x, y):
    """Σ x y, Σ (x − y)², and how many are equal."""
    products, distance, equal = ZERO, ZERO, ZERO
    for j in range(x.size):
        difference = x[j] - y[j]
        products += x[j] * y[j]
        distance += difference * difference
        equal += ONE if difference == ZERO else ZERO
    return products, distance, equal
