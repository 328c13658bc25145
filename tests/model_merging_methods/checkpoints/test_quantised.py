"""Quantised checkpoints are recognised by their config, or by the names and dtypes of their tensors."""

from pathlib import Path

import pytest

from model_merging_methods.checkpoints.quantised import quantisation_error
from utils.safetensors_files import StoredTensor

GPTQ = {"qweight": "I32", "qzeros": "I32", "scales": "F16"}
NF4 = {"weight": "U8", "weight.absmax": "F32"}


def message(suffixes: dict[str, str], config: dict) -> str | None:
    """The message about a projection that is stored as tensors of these dtypes."""
    plain = {"model.norm.weight": StoredTensor(Path("model.safetensors"), "F16", (16,))}
    module = "model.layers.0.mlp.up_proj."
    stored = {
        module + name: StoredTensor(Path("model.safetensors"), dtype, (40, 8)) for name, dtype in suffixes.items()
    }
    return quantisation_error(config, plain | stored)


def method(name: str, **settings) -> dict:
    return {"quantization_config": {"quant_method": name, **settings}}


@pytest.mark.parametrize(
    ("suffixes", "config", "kind"),
    [
        (GPTQ, method("gptq", bits=4), "GPTQ;"),
        (GPTQ, method("awq"), "AWQ;"),
        (GPTQ, {}, "GPTQ or AWQ;"),
        (GPTQ, {"text_config": method("gptq")}, "GPTQ;"),
        ({"weight": "I8", "SCB": "F32"}, method("bitsandbytes", load_in_8bit=True), "bitsandbytes int8;"),
        (NF4, method("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes nf4;"),
        (NF4, {}, "bitsandbytes;"),
        ({"weight": "F8_E4M3", "weight_scale_inv": "F32"}, method("fp8"), "FP8;"),
        ({"weight": "F8_E5M2"}, {}, "FP8;"),
        ({"weight_blocks": "U8", "weight_scales": "U8"}, {}, "MXFP4;"),
        (
            {"weight_packed": "I32"},
            {"compression_config": {"quant_method": "compressed-tensors"}},
            "compressed-tensors;",
        ),
        ({"W_q": "U8"}, method("hqq"), "HQQ;"),
        ({"codes": "I16", "codebooks": "F16"}, method("aqlm"), "AQLM;"),
        ({"weight": "I8"}, method("eetq"), "EETQ;"),
        ({"weight": "U32"}, {"quantization": {"bits": 4}}, "MLX;"),
        ({"weight": "I8"}, {}, "of an unknown kind, with int8 weights;"),
        ({"weight": "U8"}, method("future"), "future;"),
    ],
)
def test_quantised_weights_are_refused_by_kind(suffixes, config, kind):
    assert message(suffixes, config).startswith(f"is quantised ({kind} tensor model.layers.0.mlp.up_proj.")


def test_a_config_is_named_if_the_weights_are_plain():
    said = message({"weight": "F16"}, method("bitsandbytes", load_in_4bit=True))
    assert "its tensors are plain weights; remove that entry" in said
    assert message({"weight": "F16"}, {}) is None
