"""Stored values to float32 and back, compiled."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model_merging_methods.kernels.compiling import exact
from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64

INFINITY = np.int32(0x7F800000)  # as a bit pattern; those of NaNs are larger


@intrinsic
def _half_to_float(_context, pattern):
    """float32 of the float16 whose bits are a uint16."""

    def generate(_context, builder, _signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_to_half(_context, value):
    """The bits of a float32 rounded to the nearest float16, ties to even."""

    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@exact
def decode(raw, dtype, first, values):
    """Stored values `first` … of `raw` (bytes, of the dtype with that code) as float32, filling `values`."""
    last = first + values.size
    if dtype == F16:
        halves = raw.view(np.uint16)[first:last]
        for j in range(values.size):
            values[j] = _half_to_float(halves[j])
    elif dtype == BF16:
        patterns = values.view(np.uint32)
        high = raw.view(np.uint16)[first:last]
        for j in range(values.size):
            patterns[j] = np.uint32(high[j]) << np.uint32(16)
    elif dtype == F32:
        floats = raw.view(np.float32)[first:last]
        for j in range(values.size):
            values[j] = floats[j]
    elif dtype == F64:
        doubles = raw.view(np.float64)[first:last]
        for j in range(values.size):
            values[j] = np.float32(doubles[j])


@exact
def all_finite(values):
    """Whether no value is infinite or NaN."""
    patterns = values.view(np.int32)
    largest = np.int32(0)
    for j in range(values.size):
        largest = max(largest, patterns[j] & np.int32(0x7FFFFFFF))
    return largest < INFINITY


@exact
def encode(values, dtype, first, raw):
    """Round float32 `values` to the dtype with that code and put them at position `first` of `raw` (bytes).

    Returns whether all are finite after rounding.
    """
    last = first + values.size
    if dtype == F16:
        halves = raw.view(np.uint16)[first:last]
        largest = np.uint16(0)
        for j in range(values.size):
            halves[j] = _float_to_half(values[j])
            largest = max(largest, halves[j] & np.uint16(0x7FFF))
        return largest < np.uint16(0x7C00)
    if dtype == BF16:
        patterns = values.view(np.uint32)
        high = raw.view(np.uint16)[first:last]
        largest = np.uint16(0)
        for j in range(values.size):
            to_even = np.uint32(0x7FFF) + ((patterns[j] >> np.uint32(16)) & np.uint32(1))
            high[j] = np.uint16((patterns[j] + to_even) >> np.uint32(16))
            largest = max(largest, high[j] & np.uint16(0x7FFF))
        return all_finite(values) and largest < np.uint16(0x7F80)
    if dtype == F64:
        doubles = raw.view(np.float64)[first:last]
        for j in range(values.size):
            doubles[j] = values[j]
    else:
        floats = raw.view(np.float32)[first:last]
        for j in range(values.size):
            floats[j] = values[j]
    return all_finite(values)
