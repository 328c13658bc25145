"""The dtypes of stored tensors, by their names in safetensors files, in torch and configs, and as kernel codes."""

F16, BF16, F32, F64 = range(4)
FLOATING_CODES = {"F16": F16, "BF16": BF16, "F32": F32, "F64": F64}

LONG_NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}


def is_floating(dtype: str) -> bool:
    """Whether tensors of this dtype are merged; others are copied."""
    return dtype in FLOATING_CODES
