"""Compiled counting of magnitudes against brackets, by which passes find order statistics without sorting.

Magnitudes are compared as bit patterns, which are in the same order.
"""

from typing import NamedTuple

import numpy as np

from model_merging_methods.kernels.chunks import load, load_chunk, mask
from model_merging_methods.kernels.compiling import CHUNK, ZERO, exact, exact_with_arrays
from model_merging_methods.kernels.kernel_plan import NO_MASK
from model_merging_methods.kernels.method_kernels import sign_of
from model_merging_methods.kernels.stored_values import INFINITY, all_finite

_GROUP = 64  # positions that are examined one by one if any of them is undecided


class Brackets(NamedTuple):
    """For each model the patterns between which its threshold is expected (int32), and by how many bits the patterns in
    between are shifted right to count them in bins."""

    lows: np.ndarray
    highs: np.ndarray
    shifts: np.ndarray


class Undecided(NamedTuple):
    """Room for a block's values inside their brackets: each one's model, its bin, and the sign of its position's sum if
    it is kept and if it is trimmed. If several models are undecided at one position, these signs are 0, and `values`
    takes all models' values there, one row per position.
    """

    models: np.ndarray
    bins: np.ndarray
    signs_kept: np.ndarray
    signs_trimmed: np.ndarray
    values: np.ndarray


@exact_with_arrays
def count_block(plan, block, brackets, masked, counts, undecided_values):
    """Compare a block's magnitudes with brackets: of the masked task vectors if `masked`, else of the values that the
    mask is applied to (of the weights if the pretrained model is not read).

    Adds to each model's row of `counts` (int64) how many are below its bracket, and how many up to its end. Returns a
    bit for each model with NaNs, the sum of signs over decided positions, and how many rows of `undecided_values` (and
    of its `values`, which are not stored beyond its length) were filled.
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((3, CHUNK), np.float32)
    undecided_room = np.empty(CHUNK, np.int32)
    no_sums = np.zeros((models, 4))
    lows, highs, shifts = brackets
    noted_models, noted_bins, signs_kept, signs_trimmed, noted_values = undecided_values
    not_finite = 0
    signs = 0
    found = 0
    shared = 0
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = rows[0, :size]
        load(plan, block, first, pretrained, finetuned, deltas)
        if masked and plan.mask != NO_MASK:
            mask(plan, block, first, pretrained, finetuned, deltas, rows[1, :size], no_sums)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        undecided = undecided_room[:size]
        undecided[:] = np.int32(0)
        for i in range(models):
            below, up_to, largest = _count_against(values[i], lows[i], highs[i], undecided)
            counts[i, 0] += below
            counts[i, 1] += up_to
            if largest > INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << i
        signs += _sum_of_decided_signs(values, highs, undecided, rows[2, :size])
        for group in range(0, size, _GROUP):
            if not _has_any(undecided[group : group + _GROUP]):
                continue
            for j in range(group, min(group + _GROUP, size)):
                if undecided[j] == 0:
                    continue
                alone = undecided[j] == 1
                for i in range(models):
                    pattern = _pattern(values[i, j])
                    if lows[i] <= pattern < highs[i]:
                        noted_models[found] = i
                        noted_bins[found] = (pattern - lows[i]) >> shifts[i]
                        signs_kept[found] = _sign_with(values, j, highs, i) if alone else 0
                        signs_trimmed[found] = _sign_with(values, j, highs, -1) if alone else 0
                        found += 1
                if undecided[j] > 1:
                    if shared < noted_values.shape[0]:
                        noted_values[shared, :] = values[:, j]
                    shared += 1
    return not_finite, signs, found, shared


@exact
def _pattern(x):
    """The bits of |x|, which are in the order of the magnitudes."""
    return np.float32(abs(x)).view(np.int32)


@exact
def _count_against(values, low, high, undecided):
    """How many |x| are below the pattern `low`, how many up to `high`, and the largest pattern. Adds 1 to `undecided`
    where low <= |x| < high."""
    patterns = values.view(np.int32)
    below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
    for j in range(values.size):
        pattern = patterns[j] & np.int32(0x7FFFFFFF)
        below += np.int32(pattern < low)
        up_to += np.int32(pattern <= high)
        undecided[j] += np.int32((pattern >= low) & (pattern < high))
        largest = max(largest, pattern)
    return below, up_to, largest


@exact
def _sum_of_decided_signs(values, highs, undecided, total):
    """Σ sign(Σi τi) over the positions where every τi is known: trimmed below the pattern `highs[i]`."""
    total[:] = ZERO
    for i in range(values.shape[0]):
        patterns = values[i].view(np.int32)
        high = highs[i]
        for j in range(total.size):
            total[j] += values[i, j] if (patterns[j] & np.int32(0x7FFFFFFF)) >= high else ZERO
    signs = np.int32(0)
    for j in range(total.size):
        sign = np.int32(total[j] > ZERO) - np.int32(total[j] < ZERO)
        signs += sign if undecided[j] == 0 else np.int32(0)
    return signs


@exact
def _sign_with(values, j, highs, kept):
    """The sign of Σi τi at position j if only model `kept`'s undecided value is kept (−1: none)."""
    total = ZERO
    for i in range(values.shape[0]):
        if i == kept or _pattern(values[i, j]) >= highs[i]:
            total += values[i, j]
    return np.int8(sign_of(total))


@exact
def _has_any(undecided):
    """Whether any is not 0."""
    together = np.int32(0)
    for j in range(undecided.size):
        together |= undecided[j]
    return together != 0


@exact_with_arrays
def count_histogram(plan, block, brackets, masked, counts, histograms):
    """`count_block` without signs: adds the undecided values straight to `histograms`, int64 [K, bins].

    Returns a bit for each model with NaNs.
    """
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    lows, highs, shifts = brackets
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = load_chunk(plan, block, first, room, masked)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        for i in range(models):
            low, high, shift = lows[i], highs[i], shifts[i]
            patterns, histogram = values[i].view(np.int32), histograms[i]
            below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                below += np.int32(pattern < low)
                up_to += np.int32(pattern <= high)
                largest = max(largest, pattern)
            counts[i, 0] += below
            counts[i, 1] += up_to
            if largest > INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << i
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                if low <= pattern < high:
                    histogram[(pattern - low) >> shift] += 1
    return not_finite


@exact_with_arrays
def place_of_equal(plan, block, masked, model, threshold, number):
    """The position in a block of the number-th, counted from 1, of a model's magnitudes that equals a threshold; −1 if
    there are fewer. Which magnitudes: as for `count_block`."""
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    for first in range(0, block.size, CHUNK):
        _, finetuned, deltas = load_chunk(plan, block, first, room, masked)
        values = deltas[model] if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned[model]
        for j in range(values.size):
            if abs(values[j]) == threshold:
                number -= 1
                if number == 0:
                    return first + j
    return -1


@exact_with_arrays
def note_candidates(plan, block, models, brackets, masked, counts, candidates):
    """Compare a block's magnitudes with brackets, several for one model if need be: bracket s is for model `models[s]`.

    Fills `counts`, int64 [S, 3], with how many are below each bracket, inside it, and up to its end; and `candidates`,
    int32 [S, size or more], with the bins of those inside. Returns a bit for each model with NaNs.
    """
    room = np.empty((2 * block.stored.shape[0]) * CHUNK, np.float32)
    undecided = np.empty(_GROUP, np.uint32)
    lows, highs, shifts = brackets
    not_finite = 0
    counts[:] = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = load_chunk(plan, block, first, room, masked)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        for s in range(models.size):
            low, high, shift = lows[s], highs[s], shifts[s]
            patterns = values[models[s]].view(np.int32)
            below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                below += np.int32(pattern < low)
                up_to += np.int32(pattern <= high)
                largest = max(largest, pattern)
            counts[s, 0] += below
            counts[s, 2] += up_to
            if largest > INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << models[s]
            counts[s, 1] = _note_inside(patterns, low, high, shift, candidates[s], counts[s, 1], undecided)
    return not_finite


@exact
def _note_inside(patterns, low, high, shift, noted, found, undecided):
    """Append the bins of magnitudes inside a bracket to the `found` entries of `noted`. Returns how many it has now."""
    found, width = np.uint64(found), np.uint32(high - low)
    undecided[:] = np.uint32(0)
    whole = patterns.size // _GROUP * _GROUP
    for first in range(0, whole, _GROUP):  # lane l of `undecided` is for positions l, l + 64, l + 128 …
        for lane in range(_GROUP):
            pattern = patterns[first + lane] & np.int32(0x7FFFFFFF)
            undecided[lane] |= np.uint32(np.uint32(pattern - low) < width)
    for lane in range(_GROUP):
        if undecided[lane]:
            for j in range(lane, whole, _GROUP):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                noted[found] = (pattern - low) >> shift
                found += np.uint64(np.uint32(pattern - low) < width)
    for j in range(whole, patterns.size):
        pattern = patterns[j] & np.int32(0x7FFFFFFF)
        noted[found] = (pattern - low) >> shift
        found += np.uint64(np.uint32(pattern - low) < width)
    return found


@exact
def count_undecided(undecided, found, histograms, signs_kept, signs_trimmed):
    """Add the first `found` undecided values to counters of shape [models, bins] (int64)."""
    for k in range(found):
        i, bin = undecided.models[k], undecided.bins[k]
        histograms[i, bin] += 1
        signs_kept[i, bin] += undecided.signs_kept[k]
        signs_trimmed[i, bin] += undecided.signs_trimmed[k]
