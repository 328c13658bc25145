"""Compiled sums that decide values: inner products, mask sums and RAM+'s counts, in float64 and a fixed order."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model_merging_methods.kernels.chunks import keep_mask, load, load_chunk, mask, not_finite_bits
from model_merging_methods.kernels.compiling import CHUNK, ONE, exact, exact_with_arrays
from model_merging_methods.kernels.kernel_plan import NO_MASK
from model_merging_methods.kernels.method_kernels import count_active


@exact_with_arrays
def gram_block(plan, of_task_vectors, block, gram):
    """Add a block's inner products to `gram`, float64 [K, K]: of the masked models' task vectors, or of their weights.
    Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((2, CHUNK), np.float32)
    no_sums, lanes = np.zeros((models, 4)), np.empty((3, 8))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = rows[0, :size]
        load(plan, block, first, pretrained, finetuned, deltas)
        if plan.mask != NO_MASK:
            mask(plan, block, first, pretrained, finetuned, deltas, rows[1, :size], no_sums)
        squares = _add_products(deltas if of_task_vectors else finetuned, lanes, gram)
        if not np.isfinite(squares) or (plan.reads_pretrained and not of_task_vectors):
            load(plan, block, first, pretrained, finetuned, deltas)  # unmasked
            not_finite |= not_finite_bits(plan, pretrained, finetuned)
    for i in range(models):
        for k in range(i):
            gram[i, k] = gram[k, i]
    return not_finite


@exact
def _add_products(x, lanes, gram):
    """Add the inner products of the rows of `x` to the upper triangle of `gram`. Returns the sum of their squares."""
    models = x.shape[0]
    squares = 0.0
    if models == 1:
        squares, _, _ = products(x[0], x[0], lanes)
        gram[0, 0] += squares
    for i in range(models):
        for k in range(i + 1, models):
            own, between, others = products(x[i], x[k], lanes)
            gram[i, k] += between
            if k == i + 1:
                gram[i, i] += own
                squares += own
            if i == models - 2:
                gram[k, k] += others
                squares += others
    return squares


@exact
def products(x, y, lanes):
    """Σ x x, Σ x y and Σ y y in float64, each in eight interleaved sums that are added in a fixed order. `lanes` is
    room for them, float64 [3, 8]."""
    _add_in_lanes(x, y, lanes)
    xx, xy, yy = _sum_of_lanes(lanes[0]), _sum_of_lanes(lanes[1]), _sum_of_lanes(lanes[2])
    for j in range(x.size // 8 * 8, x.size):
        one, other = np.float64(x[j]), np.float64(y[j])
        xx += one * one
        xy += one * other
        yy += other * other
    return xx, xy, yy


@intrinsic
def _add_in_lanes(_context, x, y, lanes):
    """Σ x x, Σ x y and Σ y y of float32 arrays in float64, one in each row of `lanes` (float64 [3, 8]): lane l gets the
    positions l, l + 8, l + 16 … in order.

    Written for vectors of eight, because the compiler adds scalars one by one; the three sums do not wait for each
    other. Positions after the last eight are left out.
    """

    def generate(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        arrays = [context.make_array(kind)(context, builder, array) for kind, array in pairs]
        floats, doubles = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.DoubleType(), 8)
        eight = ir.Constant(ir.IntType(64), 8)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * 8)) for _ in range(3)]
        with cgutils.for_range(builder, builder.udiv(builder.extract_value(arrays[0].shape, 0), eight)) as loop:
            first = builder.mul(loop.index, eight)
            places = [builder.bitcast(builder.gep(of.data, [first]), floats.as_pointer()) for of in arrays[:2]]
            x, y = (builder.fpext(builder.load(place, align=4), doubles) for place in places)
            for total, factors in zip(totals, ((x, x), (x, y), (y, y)), strict=True):
                builder.store(builder.fadd(builder.load(total), builder.fmul(*factors)), total)
        rows = builder.bitcast(arrays[2].data, doubles.as_pointer())
        for number, total in enumerate(totals):
            place = builder.gep(rows, [ir.Constant(ir.IntType(64), number)])
            builder.store(builder.load(total), place, align=8)
        return context.get_dummy_value()

    return types.void(x, y, lanes), generate


@exact
def _sum_of_lanes(lanes):
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))


@exact_with_arrays
def mask_sums(plan, block, sums):
    """Add to `sums`, float64 [K, 2], the sum of the magnitudes that the mask is applied to, and that of those it keeps.
    Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    lanes = np.empty((3, 8))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = load_chunk(plan, block, first, room, False)
        keep = room[(2 * models + 1) * CHUNK : (2 * models + 1) * CHUNK + pretrained.size]
        not_finite |= not_finite_bits(plan, pretrained, finetuned)
        for i in range(models):
            values = deltas[i] if plan.masks_deltas else finetuned[i]
            keep_mask(plan, block, first, i, values, keep)
            for j in range(values.size):
                values[j] = abs(values[j])
            sums[i, 1] += products(values, keep, lanes)[1]
            keep[:] = ONE
            sums[i, 0] += products(values, keep, lanes)[1]
    return not_finite


@exact_with_arrays
def count_changes(plan, block, counts):
    """Add to `counts`, float64 [K, 2], at how many positions a masked model and others, and it alone, have |δ| above
    the first of the plan's numbers. Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    epsilon = plan.numbers[0]
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    active, no_sums = np.empty(CHUNK, np.float32), np.zeros((models, 4))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = load_chunk(plan, block, first, room, False)
        not_finite |= not_finite_bits(plan, pretrained, finetuned)
        changed = active[: pretrained.size]
        if plan.mask != NO_MASK:
            mask(plan, block, first, pretrained, finetuned, deltas, changed, no_sums)
        count_active(deltas, epsilon, changed)
        for i in range(models):
            shared, alone = np.int32(0), np.int32(0)
            for j in range(changed.size):
                is_active = abs(deltas[i, j]) > epsilon
                shared += np.int32(is_active & (changed[j] > ONE))
                alone += np.int32(is_active & (changed[j] == ONE))
            counts[i, 0] += shared
            counts[i, 1] += alone
    return not_finite
