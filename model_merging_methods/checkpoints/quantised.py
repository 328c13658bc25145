"""Recognise quantised checkpoints, by their config and by the names and dtypes of their tensors.

The numbers in a quantised file are codes, not weights: they cannot be averaged. Dequantising is not done here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from model_merging_methods.kernels.stored_dtypes import LONG_NAMES, is_floating
from utils.safetensors_files import StoredTensor

_GIVE_ORIGINAL = "give the checkpoint in float16 or bfloat16 that it was made from"
_DEQUANTISE = "give the original, or load it with from_pretrained(), call dequantize() and save_pretrained()"


class _Kind(NamedTuple):
    """A way to quantise: what users call it, and the remedy."""

    title: str
    remedy: str


_GPTQ_OR_AWQ = _Kind("GPTQ or AWQ", _GIVE_ORIGINAL)
_FP8 = _Kind("FP8", "give the bfloat16 checkpoint, or load it with FineGrainedFP8Config(dequantize=True) and save it")
_MXFP4 = _Kind("MXFP4", "load it with quantization_config=Mxfp4Config(dequantize=True) and save it")
_BITSANDBYTES = _Kind("bitsandbytes", _DEQUANTISE)
_MLX = _Kind("MLX", "give the checkpoint that it was converted from")
_TITLES = ("GPTQ", "AWQ", "compressed-tensors", "HQQ", "AQLM", "EETQ", "Quanto", "torchao", "BitNet")
# By quant_method in a config; any other method is shown by its name in the config.
_METHODS = {
    **{title.lower(): _Kind(title, _GIVE_ORIGINAL) for title in _TITLES},
    **dict.fromkeys(("bitsandbytes", "bitsandbytes_8bit", "bitsandbytes_4bit"), _BITSANDBYTES),
    **{"mxfp4": _MXFP4, "fp8": _FP8, "fbgemm_fp8": _FP8},
}
# By the end of a tensor's name, for configs that say nothing.
_NAMES = (
    (r"\.weight_scale_inv$", _FP8),
    (r"\.(SCB|weight_format|weight\.(absmax|quant_map|nested_absmax|quant_state\..+))$", _BITSANDBYTES),
    (r"\.(qweight|qzeros|g_idx)$", _GPTQ_OR_AWQ),
    (r"_(blocks|scales)$", _MXFP4),
    (r"\.(weight_packed|weight_zero_point|weight_shape)$", _METHODS["compressed-tensors"]),
    (r"\.(W_q|meta)$", _METHODS["hqq"]),
    (r"\.(codes|codebooks)$", _METHODS["aqlm"]),
    (r"\.weight_scales$", _METHODS["eetq"]),
    (r"\.weight\._(data|scale|shift)$", _METHODS["quanto"]),
)
# The config keys that describe quantisation; MLX has a separate one.
_CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")


def quantisation_error(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> str | None:
    """The message about a checkpoint with quantised tensors, or with a config that says so; None for plain weights."""
    key, settings = _settings(config)
    codes = [name for name, stored in tensors.items() if _is_code(name, stored)]
    if codes:
        kind = _kind_of_config(key, settings) if settings else _kind_of_names(tensors)
        if kind is None:
            dtype = LONG_NAMES.get(tensors[codes[0]].dtype, tensors[codes[0]].dtype)
            kind = _Kind(f"of an unknown kind, with {dtype} weights", _GIVE_ORIGINAL)
        return f"is quantised ({kind.title}; tensor {codes[0]}), and codes cannot be merged; {kind.remedy}"
    if settings:
        return (
            f"has {key} ({_kind_of_config(key, settings).title}) in config.json, though its tensors are plain weights; "
            "remove that entry if they are whole"
        )
    return None


def _settings(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    inner = config.get("text_config")
    for where in (config, inner if isinstance(inner, dict) else {}):
        for key in _CONFIG_KEYS:
            if isinstance(where.get(key), dict) and where[key]:
                return key, where[key]
    return "", {}


def _kind_of_config(key: str, settings: Mapping[str, Any]) -> _Kind:
    method = str(settings.get("quant_method", "")).lower()
    if key == "quantization" and not method:
        return _MLX
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return _Kind(f"bitsandbytes {'int8' if settings.get('load_in_8bit') else _four_bits(settings)}", _DEQUANTISE)
    return _METHODS.get(method, _Kind(method or "of an unknown kind", _GIVE_ORIGINAL))


def _four_bits(settings: Mapping[str, Any]) -> str:
    return str(settings.get("bnb_4bit_quant_type") or "4 bits")


def _kind_of_names(tensors: Mapping[str, StoredTensor]) -> _Kind | None:
    for pattern, kind in _NAMES:
        if any(re.search(pattern, name) for name in tensors):
            return kind
    if any(stored.dtype == "U32" for stored in tensors.values()):
        return _MLX
    if any(stored.dtype.startswith("F8_") for stored in tensors.values()):
        return _FP8
    return None


def _is_code(name: str, stored: StoredTensor) -> bool:
    """Whether a tensor holds codes: floats of 8 bits or fewer, or integers under the name of a weight or under a name
    that only quantised checkpoints use."""
    if stored.dtype.startswith(("F4", "F6_", "F8_")):
        return True
    is_integer = not is_floating(stored.dtype) and stored.dtype != "C64"
    is_matrix = len(stored.shape) > 1 and name.endswith("weight")
    return is_integer and (is_matrix or any(re.search(pattern, name) for pattern, _ in _NAMES))
