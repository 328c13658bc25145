"""Elementwise steps of methods that see whole tensors, compiled, with the same bits as their formulas. Inner loops run
over the positions, so that the compiler turns them into vector instructions."""

import numpy as np

from model_merging_methods.kernels.compiling import ONE, ZERO, exact, exact_with_arrays


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
