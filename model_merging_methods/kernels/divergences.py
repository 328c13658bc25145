"""The divergence between the softmaxes of two models' rows, in float64: Arcee Fusion's, compiled.

Loops do the same to each value of a row, so that the compiler turns them into vector instructions. Sums are added up in
64 lanes, then the lanes in order.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model_merging_methods.kernels.compiling import exact, exact_with_arrays

_LANES = 64
_EPSILON = 1e-8  # added to probabilities
_NEAR = 0.05  # up to this |p / q − 1|, 13 terms of the series are all that float64 can tell

_LOG2_E = 1 / math.log(2)
_LN2, _REST_OF_LN2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the first ends with 21 zero bits
_INTEGERS = 1.5 * 2.0**52  # float64 numbers near this one are integers
_SMALLEST = -700.0  # e^x is as good as 0 below


def _polynomial(builder, x, coefficients):
    """Horner's scheme, the highest power's coefficient first; each step is rounded once."""
    total = ir.Constant(ir.DoubleType(), coefficients[0])
    for coefficient in coefficients[1:]:
        total = builder.fma(total, x, ir.Constant(ir.DoubleType(), coefficient))
    return total


@intrinsic
def _exp_near_zero(_context, x):
    """Σ xᵏ / k!, k = 0 … 13."""
    coefficients = [1 / math.factorial(k) for k in range(13, -1, -1)]
    return types.float64(types.float64), lambda _context, builder, _signature, x: _polynomial(
        builder, x[0], coefficients
    )


@intrinsic
def _series(_context, r):
    """((1 + r) log (1 + r) − r) / r² = Σ (−r)ᵏ⁻² / (k (k − 1)), k = 2 … 14."""
    coefficients = [(-1) ** k / (k * (k - 1)) for k in range(14, 1, -1)]
    return types.float64(types.float64), lambda _context, builder, _signature, r: _polynomial(
        builder, r[0], coefficients
    )


@intrinsic
def _power_of_two(_context, shifted):
    """2ᵏ of the float64 number _INTEGERS + k, for k > −1023: k's last bits become the exponent."""

    def generate(_context, builder, _signature, arguments):
        integer = ir.IntType(64)
        exponent = builder.add(builder.bitcast(arguments[0], integer), ir.Constant(integer, 1023))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, 52)), ir.DoubleType())

    return types.float64(types.float64), generate


@exact
def _exp(x):
    """e^x for x ≤ 0."""
    x = max(x, _SMALLEST)
    shifted = x * _LOG2_E + _INTEGERS
    k = shifted - _INTEGERS
    return _exp_near_zero((x - k * _LN2) - k * _REST_OF_LN2) * _power_of_two(shifted)


@exact
def _sum(values, lanes):
    lanes[:] = 0.0
    whole = values.size // _LANES * _LANES
    for first in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] += values[first + lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for j in range(whole, values.size):
        total += values[j]
    return total


@exact
def _largest(row):
    """The largest of float32 values, as integers in the same order, of which vectors are made."""
    patterns = row.view(np.int32)
    largest = np.int32(-(2**31))
    for j in range(row.size):
        largest = max(largest, patterns[j] ^ ((patterns[j] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@exact
def _softmax(row, p, lanes):
    """The softmax of float32 values, plus epsilon, into `p`."""
    shift = np.float64(_largest(row))
    for j in range(row.size):
        p[j] = _exp(np.float64(row[j]) - shift)
    total = _sum(p, lanes)
    for j in range(row.size):
        p[j] = p[j] / total + _EPSILON


@exact
def _divergence(p, q, lanes):
    """Σ p log (p / q), p and q with the same sum. Overwrites both.

    With r = p / q − 1 this is Σ q ((1 + r) log (1 + r) − r), because Σ q r = 0: no term is negative, and rows that
    hardly differ lose no digits.
    """
    differs = np.int64(0)
    for j in range(p.size):
        p[j] = (p[j] - q[j]) / q[j]
        differs |= np.int64(abs(p[j]) > _NEAR)
    if differs:
        for j in range(p.size):
            q[j] *= (1.0 + p[j]) * math.log1p(p[j]) - p[j]
    else:
        for j in range(p.size):
            q[j] *= p[j] * p[j] * _series(p[j])
    return _sum(q, lanes)


@exact_with_arrays
def row_divergences(theta, base):
    """KL = Σ p log (p / q) of each row of float32 matrices [rows, n]: float64 [rows]; p is the softmax of a row of
    `theta` plus 1e-8, q that of `base`."""
    p, q, lanes = np.empty(theta.shape[1]), np.empty(theta.shape[1]), np.empty(_LANES)
    divergences = np.empty(theta.shape[0])
    for row in range(theta.shape[0]):
        _softmax(theta[row], p, lanes)
        _softmax(base[row], q, lanes)
        divergences[row] = _divergence(p, q, lanes)
    return divergences
