"""Elementwise steps of methods that see whole tensors, compiled, with the same bits as their formulas. Inner loops run
over the positions, so that the compiler turns them into vector instructions."""

import numpy as np

from model_merging_methods.kernels.block_kernels import ONE, ZERO, exact, exact_with_arrays


@exact
def erase(values, dropped):
    """Set values to 0 where `dropped`."""
    for j in range(values.size):
        values[j] = ZERO if dropped[j] else values[j]


@exact_with_arrays
def elected_means(values, weights, least, mean):
    """The weighted mean of those float32 values [K, n] of each column that have the sign of its sum. Their weights
    count as `least` together if they sum to less."""
    models, number = values.shape
    sign, divisor = values[0].copy(), np.empty(number, np.float32)
    for i in range(1, models):
        for j in range(number):
            sign[j] += values[i, j]
    for j in range(number):
        sign[j] = ONE if sign[j] >= ZERO else -ONE
    for i in range(models):
        weight = weights[i]
        for j in range(number):
            here = ONE if values[i, j] * sign[j] > ZERO else ZERO
            term, part = values[i, j] * here * weight, here * weight
            # Not from 0 on: that would change the sign of zeros.
            mean[j] = term if i == 0 else mean[j] + term
            divisor[j] = part if i == 0 else divisor[j] + part
    for j in range(number):
        mean[j] /= max(divisor[j], least)


@exact
def drop_products_below(values, factors, threshold):
    """Set float32 values [rows, n] to 0 where |value| · factor of the row is below the threshold."""
    rows, columns = values.shape
    for row in range(rows):
        for j in range(columns):
            if np.float64(abs(values[row, j])) * factors[row] < threshold:
                values[row, j] = ZERO


@exact_with_arrays
def count_changes(values, least, counts):
    """Add to counts [K, 2], for each model of float32 values [K, n], at how many positions it and others, and it alone,
    have a magnitude above `least`."""
    models, number = values.shape
    changed = _models_that_changed(values, least)
    for i in range(models):
        shared, alone = 0, 0
        for j in range(number):
            here = abs(values[i, j]) > least
            shared += np.int64(here & (changed[j] > ONE))
            alone += np.int64(here & (changed[j] == ONE))
        counts[i, 0] += shared
        counts[i, 1] += alone


@exact_with_arrays
def means_of_changes(values, least, factors, mean):
    """The mean of those float32 values [K, n] of each column whose magnitude is above `least`; a single one is
    multiplied by the factor of its model."""
    models, number = values.shape
    changed = _models_that_changed(values, least)
    mean[:] = ZERO
    for i in range(models):
        factor = factors[i]
        for j in range(number):
            value = values[i, j] / max(changed[j], ONE) if changed[j] > ONE else values[i, j] * factor
            mean[j] += value * (ONE if abs(values[i, j]) > least else ZERO)


@exact_with_arrays
def _models_that_changed(values, least):
    changed = np.zeros(values.shape[1], np.float32)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            changed[j] += ONE if abs(values[i, j]) > least else ZERO
    return changed
