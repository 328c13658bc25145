"""The dtypes of stored tensors, by the names that safetensors gives them, and as codes for compiled code."""

F16, BF16, F32, F64 = range(4)
FLOATING_CODES = {"F16": F16, "BF16": BF16, "F32": F32, "F64": F64}

# Every dtype of the safetensors format, with its bits a value.
ITEM_BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
ITEM_SIZES = {dtype: bits // 8 for dtype, bits in ITEM_BITS.items() if bits % 8 == 0}  # bytes

# The same dtypes as configs, options and torch name them.
LONG_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}


def is_floating(dtype: str) -> bool:
    """Whether tensors of this dtype are merged; others are copied."""
    return dtype in FLOATING_CODES
