"""Stored tensors that are no parameters: models compute them for themselves when they are built.

Older versions of transformers wrote such buffers into checkpoints, newer ones leave them out and pass over them. A
name alone is not enough where a family may use it for a parameter, so form decides as well: `attn.bias` is a causal
mask only as [1, 1, n, n], while the bias of a linear layer has one dimension.
"""

from collections.abc import Sequence

# Tables of rotary and sinusoidal positions: no family trains these, whatever their form.
_TABLES = (
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_pos_emb.inv_freq",
    "rotary_emb.cos",
    "rotary_emb.sin",
)
# Causal masks, and the number that masked scores are set to (GPT-2, GPT-J, GPT-Neo, GPT-NeoX, CodeGen).
_MASKS = ("attn.bias", "attention.bias", "attn.causal_mask")
_MASKED_SCORES = ("attn.masked_bias", "attention.masked_bias")
# Numbers of positions 0, 1, 2, … and of token types 0, 0, 0, …: integers, which no parameter is.
_COUNTED = ("position_ids", "token_type_ids")
_WITHOUT_FRACTIONS = ("BOOL", "U8", "I8", "I16", "I32", "I64")


def is_buffer(name: str, dtype: str, shape: Sequence[int]) -> bool:
    """Whether a stored tensor is a buffer that current models compute for themselves."""
    if name.endswith(_TABLES):
        return True
    if name.endswith(_MASKS):
        return len(shape) == 4 and tuple(shape[:2]) == (1, 1) and shape[2] == shape[3]
    if name.endswith(_MASKED_SCORES):
        return tuple(shape) in ((), (1,))
    return name.endswith(_COUNTED) and dtype in _WITHOUT_FRACTIONS
