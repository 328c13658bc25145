"""Explaining, in one line, why the tensor names of two models do not agree."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from model_merging_methods.checkpoints.vocabulary_matrices import Folder

_ALIKE = "save both models with the same version of transformers and the same options of save_pretrained()"
_ONE_BACKBONE = "merge fine-tunes of one pretrained model"
_WHOLE = "save the whole AutoModelForCausalLM"
_FUSED_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj|gate_proj|up_proj|w1|w2|w3)(?:\.weight)?$")
_SPLIT_EXPERTS = re.compile(r"\.experts\.\d+\.")
_MULTIMODAL = re.compile(
    r"(?:^|\.)(language_model|vision_tower|vision_model|visual|audio_tower|multi_modal_projector|thinker|talker)\."
)
_TOWER = re.compile(
    r"(?:^|\.)(vision_tower|vision_model|visual|audio_tower|embed_vision|embed_audio|multi_modal_projector)\."
)


class _Explanation(NamedTuple):
    """What names of one model only show: `pattern` finds them, `what` it means, and the remedy."""

    pattern: str
    what: str
    remedy: str


# Names that tell what a model is, where it has them and the other model does not.
_SIGNS = (
    _Explanation(r"\.lora_(A|B|embedding_A)\b", "has LoRA matrices that were not merged", "save merge_and_unload()"),
    _Explanation(
        r"^(tok_embeddings|layers\.\d+\.attention\.w[qkvo])\.", "has the original names of another program",
        "convert it with transformers' script for that family",
    ),
    _Explanation(r"^(v_head|value_head)\.", "has the value head of a reward or PPO training", _WHOLE),
    _Explanation(
        r"^(score|classifier|classification_head)\.|(?:^|\.)reward_head\.", "has a head for classification",
        "merge language models, saved as AutoModelForCausalLM",
    ),
    _Explanation(r"\.(qkv_proj|W_pack|query_key_value)\.", "stores query, key and value as one tensor", _ALIKE),
    _Explanation(r"\.(gate_up_proj|w12)\.", "stores gate and up projection as one tensor", _ALIKE),
)  # fmt: skip


def explain_difference(base: Folder, model: Folder, missing: Sequence[str], extra: Sequence[str]) -> str:
    """One line on names that only the pretrained model (`missing`) and only the fine-tune (`extra`) has."""
    numbers = _numbers(base, model, missing, extra)
    for names, other_names, one, other in ((extra, missing, model, base), (missing, extra, base, model)):
        reason = _experts(names, other_names, other) or _multimodal(names, other_names, other) or _sign(names)
        if reason:
            return f"{one.folder}: {reason[0]}, unlike {other.folder} ({numbers}); {reason[1]}"
    layers = _number_of_layers(missing, extra, base, model)
    if layers:
        return f"{model.folder}: {layers} ({numbers}); {_ONE_BACKBONE}"
    if not base.tensors.keys() & model.tensors.keys():
        return f"{model.folder}: shares no tensor name with {base.folder} ({numbers}); {_ONE_BACKBONE}"
    if extra:
        return f"{model.folder}: its tensors have other names than those of {base.folder} ({numbers}); {_ONE_BACKBONE}"
    return (
        f"{model.folder}: lacks tensors of {base.folder} ({numbers}); save the whole model, or leave these as the "
        f"pretrained model has them with --exclude_param_names_regex '{_regex(missing)}'"
    )


def _numbers(base: Folder, model: Folder, missing: Sequence[str], extra: Sequence[str]) -> str:
    parts = []
    for names, folder in ((missing, base), (extra, model)):
        if names:
            patterns = _patterns(names)
            more = f" and {len(patterns) - 2} more patterns" if len(patterns) > 2 else ""
            parts.append(f"{len(names)} only in {folder.folder.name}: {', '.join(patterns[:2])}{more}")
    return "; ".join(parts)


def _patterns(names: Sequence[str]) -> list[str]:
    """Names, or with N for the numbers where several have one pattern; the most frequent first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name), []).append(name)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [pattern if len(own) > 1 else own[0] for pattern, own in ordered]


def _experts(names: Sequence[str], others: Sequence[str], other: Folder) -> tuple[str, str] | None:
    if any(map(_FUSED_EXPERTS.search, names)) and any(map(_SPLIT_EXPERTS.search, others)):
        return "stores the experts of a layer fused, as one tensor", _ALIKE
    if any(map(_SPLIT_EXPERTS.search, names)) and not any(".experts." in name for name in other.tensors):
        return "is a mixture of experts", _ONE_BACKBONE
    return None


def _multimodal(names: Sequence[str], others: Sequence[str], other: Folder) -> tuple[str, str] | None:
    if not any(map(_MULTIMODAL.search, names)):
        return None
    parts = sorted({found[1] for found in map(_MULTIMODAL.search, names) if found})
    what = f"is a multimodal checkpoint ({', '.join(f'{part}.…' for part in parts)})"
    if not any(map(_MULTIMODAL.search, other.tensors)):
        return f"{what} and the other a language model alone", "give models of one kind"
    if any(map(_MULTIMODAL.search, others)):
        return f"{what} whose names are of another version of transformers", _ALIKE
    towers = sorted({found[1] for found in map(_TOWER.search, names) if found})
    if towers and all(map(_TOWER.search, names)):
        remedy = f"leave these parts as they are with --exclude_param_names_regex {' '.join(f'{t}' for t in towers)}"
        return f"has {', '.join(towers)}", remedy
    return None


def _sign(names: Sequence[str]) -> tuple[str, str] | None:
    return next(((what, remedy) for pattern, what, remedy in _SIGNS if any(re.search(pattern, n) for n in names)), None)


def _number_of_layers(missing: Sequence[str], extra: Sequence[str], base: Folder, model: Folder) -> str | None:
    layers = [_layers(folder.tensors) for folder in (base, model)]
    shown = [name for name in (*missing, *extra) if not re.search(r"\.\d+\.", name)]
    if layers[0] == layers[1] or not all(layers) or shown:
        return None
    return f"has {layers[1]} layers where {base.folder} has {layers[0]}"


def _layers(names) -> int:
    return len({found[1] for found in map(re.compile(r"(?:layers|h|block|blocks)\.(\d+)\.").search, names) if found})


def _regex(names: Sequence[str]) -> str:
    """A regular expression for names: their last two parts."""
    endings = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
    return "|".join(map(re.escape, endings[:3])) if len(endings) <= 3 else re.escape(names[0])
