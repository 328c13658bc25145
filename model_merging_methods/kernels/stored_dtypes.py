"""The dtypes of stored tensors, by the names that safetensors gives them, and as codes for compiled code."""

F16, BF16, F32, F64 = range(4)
FLOATING_CODES = {"F16": F16, "BF16": BF16, "F32": F32, "F64": F64}

ITEM_SIZES = {  # bytes
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

# The same dtypes as configs, options and torch name them.
LONG_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}


def is_floating(dtype: str) -> bool:
    """Whether tensors of this dtype are merged; others are copied."""
    return dtype in FLOATING_CODES
