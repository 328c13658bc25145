"""Matrices with a row for every token: their names in different families, and which names mean one matrix.

Input and output embeddings may be one matrix (tied) or two. Files store a tied matrix under one name or both, configs
say so or not, and T5 has up to four names for it. Values decide here: names whose tensors are equal in every model are
one matrix, which is merged once and counted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from utils.findings import Findings
from utils.safetensors_files import StoredTensor

# Endings of names, in one family or another, of the parameters that have a row for every token.
INPUT_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",  # InternLM2, ModernBERT
    "tokens_embed.weight",  # OpenAI-GPT
    "word_embedding.weight",  # XLNet
    "backbone.embeddings.weight",  # Mamba
)
OUTPUT_EMBEDDINGS = (
    "lm_head.weight",
    "embed_out.weight",
    "lm_head.decoder.weight",  # RoBERTa
    "predictions.decoder.weight",  # BERT
)
OUTPUT_BIASES = ("lm_head.bias", "lm_head.decoder.bias", "predictions.decoder.bias", "predictions.bias")
_ALIASES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # T5, BART and others
_COMPARED_AT_ONCE = 1 << 22  # bytes


class Folder(Protocol):
    """An opened checkpoint."""

    folder: Any
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    has_values: bool

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None: ...

    def origin(self, name: str) -> "Origin | None": ...


class Origin(NamedTuple):
    """Where a tensor is stored: in an opened folder, under its own name there."""

    folder: Folder
    name: str


@dataclass(frozen=True)
class VocabularyMatrices:
    """`stored`: for each model its own name of every matrix, by the merged name. `same_as` maps a name to the name of
    the matrix that it repeats. `added` are names that the pretrained model does not store."""

    stored: list[dict[str, str]]
    same_as: dict[str, str]
    added: list[str]
    must_untie: bool


def is_vocabulary(name: str) -> bool:
    """Whether a parameter has a row for every token."""
    return is_vocabulary_matrix(name) or name.endswith(OUTPUT_BIASES)


def is_vocabulary_matrix(name: str) -> bool:
    return name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS))


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether a config ties the output embeddings; None if it leaves that to the family's default."""
    inner = config.get("text_config")
    inherited = inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
    return config.get("tie_word_embeddings", inherited)


def match_matrices(
    models: Sequence[Folder], names: Sequence[Mapping[str, str]], excludes: Callable[[str], bool], findings: Findings
) -> VocabularyMatrices:
    """The matrices of all models, the pretrained one first. `names` maps, for each model, the pretrained model's names
    to its own. Matrices that cannot be matched are among the findings."""
    own = [{name: stored for name, stored in mapped.items() if is_vocabulary_matrix(name)} for mapped in names]
    found = list(dict.fromkeys(name for mapped in own for name in mapped))
    shared = []
    for name in found:
        tensors = [
            mapped.get(name) or _stand_in(model, mapped, name, lambda: _is_tied(models[0], own[0]))
            for model, mapped in zip(models, own, strict=True)
        ]
        if None not in tensors:
            shared.append(name)
            for mapped, tensor in zip(own, tensors, strict=True):
                mapped[name] = tensor
        elif not excludes(name):
            findings.error(_missing_error(models[tensors.index(None)], name, name in own[0]))
            return VocabularyMatrices([], {}, [], False)
    groups = [shared]
    for model, mapped in zip(models, own, strict=True):
        parts = [part for group in groups for part in _equal_parts(model, mapped, group)]
        if len(parts) > len(groups) and model is not models[0]:
            findings.warn(
                f"{model.folder}: its output head is a separate matrix, while {models[0].folder} ties its head to the "
                "input embeddings; both are merged, and the merged config has tie_word_embeddings false"
            )
        groups = parts
    same_as, added = {}, []
    for group in groups:
        written = [name for name in group if name in names[0]]
        if not written:
            written = group[:1]
            added += written
        inputs = [name for name in written if name.endswith(INPUT_EMBEDDINGS)]
        first = min(inputs, key=len) if inputs else written[0]  # `shared.weight` before its aliases
        same_as |= {name: first for name in written if name != first}
    kept = {*names[0], *added}
    stored = [{name: own_name for name, own_name in mapped.items() if name in kept} for mapped in own]
    has_own_head = any(name.endswith(OUTPUT_EMBEDDINGS) and name not in same_as for name in kept)
    must_untie = False
    if has_own_head and any(name.endswith(INPUT_EMBEDDINGS) for name in kept):
        must_untie = _must_untie(models[0], own[0], findings)
    return VocabularyMatrices(stored, same_as, added, must_untie)


def _must_untie(base: Folder, own: Mapping[str, str], findings: Findings) -> bool:
    """Whether the pretrained model's config would tie a head that is a separate matrix in the merged model."""
    ties, is_tied = ties_embeddings(base.config), _is_tied(base, own)
    if ties and not is_tied:
        findings.warn(
            f"{base.folder}: its config ties the output head, but the file stores a head of other values; the head is "
            "merged as a separate matrix, and the merged config has tie_word_embeddings false"
        )
    return bool(ties) or (ties is None and is_tied)


def _is_tied(model: Folder, own: Mapping[str, str]) -> bool:
    """Whether a model's output embeddings are its input embeddings; one that stores a single matrix shares it."""
    heads = [name for name in own if name.endswith(OUTPUT_EMBEDDINGS)]
    inputs = [name for name in own if name.endswith(INPUT_EMBEDDINGS)]
    return not heads or not inputs or holds_equal(model, own[heads[0]], own[inputs[0]])


def _stand_in(model: Folder, own: Mapping[str, str], name: str, base_is_tied: Callable[[], bool]) -> str | None:
    """The tensor that stands in for one that a model does not store separately."""
    inputs = [other for other in own if other.endswith(INPUT_EMBEDDINGS)]
    heads = [other for other in own if other.endswith(OUTPUT_EMBEDDINGS)]
    if name.endswith(_ALIASES):
        aliases = [other for other in inputs if other.endswith(_ALIASES)]
        if aliases:
            return own[aliases[0]]
    ties = ties_embeddings(model.config)
    if ties is False or (ties is None and not base_is_tied()):
        return None
    if name.endswith(OUTPUT_EMBEDDINGS) and inputs:
        return own[min(inputs, key=len)]  # next-token-prediction layers have longer names
    return own[heads[0]] if name.endswith(INPUT_EMBEDDINGS) and heads and not inputs else None


def _missing_error(model: Folder, name: str, base_has: bool) -> str:
    if name.endswith(OUTPUT_EMBEDDINGS):
        return (
            f"{model.folder}: stores no output head ({name}), and its config does not tie it to the input embeddings: "
            "a backbone without its head, or a wrong tie_word_embeddings; save the whole AutoModelForCausalLM"
        )
    other = "the pretrained model has" if base_has else "another model has"
    return f"{model.folder}: stores no input embeddings {name}, which {other}; save the whole model"


def _equal_parts(model: Folder, own: Mapping[str, str], group: Sequence[str]) -> list[list[str]]:
    """A group of names, split by the values that a model has under them."""
    parts: list[list[str]] = []
    for name in group:
        for part in parts:
            if holds_equal(model, own[part[0]], own[name]):
                part.append(name)
                break
        else:
            parts.append([name])
    return parts


def holds_equal(model: Folder, one: str, other: str) -> bool:
    """Whether two tensors of a model hold the same bytes. The first stretch usually decides."""
    if one == other:
        return True
    first, second = model.tensors[one], model.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    step = max(_COMPARED_AT_ONCE // first.item_size, 1)
    buffers = np.empty((2, step * first.item_size), np.uint8)
    for start in range(0, first.numel, step):
        stop = min(start + step, first.numel)
        views = [buffer[: (stop - start) * first.item_size] for buffer in buffers]
        model.read_into(views[0], one, start, stop)
        model.read_into(views[1], other, start, stop)
        if not np.array_equal(*views):
            return False
    return True
