"""Match the tensor names of fine-tunes with the pretrained model's, or explain in one line why they differ.

Programs that wrap a model leave their prefixes in its names, and some save a model without the name of its body. Such
names are mapped if all of them agree afterwards.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from model_merging_methods.checkpoints.vocabulary_matrices import Folder, is_vocabulary_matrix
from model_merging_methods.kernels.stored_dtypes import is_floating
from utils.findings import Findings
from utils.weight_files import INNER_WRAPPERS, OUTER_WRAPPERS

_INNER = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, INNER_WRAPPERS))})")
_OUTER = re.compile(rf"^(?:{'|'.join(map(re.escape, OUTER_WRAPPERS))})+")
_LAYER = re.compile(r"(?:model\.|language_model\.model\.|model\.language_model\.)?layers\.(\d+)\.")  # of the text model

_CONV1D_FAMILIES = ("gpt2", "openai-gpt")
_CONV1D = re.compile(r"\.(?:c_attn|q_attn|c_proj|c_fc)\.weight$")
LAYER = re.compile(r"(?P<before>(?:^|.*?\.)(?:layers|layer|h|blocks|block)\.)(?P<number>\d+)(?P<after>\..+)")

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
    """A `pattern` of names that only one of two models has, what they mean, and the remedy."""

    pattern: str
    what: str
    remedy: str


# Names that show what a model is, if it has them and the other model does not.
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


@dataclass(frozen=True)
class MatchedNames:
    """`stored` maps, for each model, the merged names to its own, if it has them. `kept` are names that some fine-tune
    lacks, whose tensors stay as in the pretrained model; `left_out` are names that the merged model will not have."""

    stored: list[dict[str, str]]
    kept: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)


def match_names(models: Sequence[Folder], excludes: Callable[[str], bool], findings: Findings) -> MatchedNames:
    """The names of all models, the pretrained one first. Differences are among the findings."""
    base, *finetuned = models
    base_names = unwrapped_names(base, findings)
    matched = MatchedNames([base_names])
    for model in finetuned:
        own = unwrapped_names(model, findings)
        names = _Names(base, model, base_names, own, excludes)
        mapped = names.best_mapping()
        if mapped is None:
            findings.error(explain_difference(base, model, names.missing(own), names.extra(own)))
            mapped = own
        left_out = names.unneeded(mapped)
        matched.left_out.update(left_out)
        if left_out:
            findings.warn(
                f"{model.folder}: {len(left_out)} tensors that {base.folder} does not have are left out of the merge, "
                f"such as {left_out[0]}"
            )
        matched.stored.append({n: own for n, own in mapped.items() if n in base_names or is_vocabulary_matrix(n)})
        matched.kept.update(name for name in base_names if name not in mapped and names.may_lack(name))
    unloaded = [name for name in base_names if name in matched.kept and is_never_loaded(name, base.config)]
    if unloaded:
        findings.warn(
            f"{base.folder}: {len(unloaded)} tensors that not every fine-tune has are kept as they are, such as "
            f"{unloaded[0]}; transformers never loads these layers"
        )
    return matched


def unwrapped_names(model: Folder, findings: Findings) -> dict[str, str]:
    """A model's names, by the names without wrappers' prefixes."""
    names: dict[str, str] = {}
    for own in model.tensors:
        name = without_wrappers(own)
        if name in names:
            findings.error(f"{model.folder}: holds {name} twice, as {names[name]} and as {own}; save the model again")
        names[name] = own
    return names


def without_wrappers(name: str) -> str:
    """A tensor's name without the prefixes of wrappers."""
    return _OUTER.sub("", _INNER.sub("", name))


def is_stored_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix is stored as (in, out): the layers Conv1D of GPT-2 and of its predecessor."""
    return config.get("model_type") in _CONV1D_FAMILIES and _CONV1D.search(name) is not None


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None for embeddings, norms and heads outside the layers."""
    found = LAYER.fullmatch(name)
    return int(found["number"]) if found else None


def count_layers(names: Iterable[str]) -> int:
    """How many layers a model with these tensors has."""
    layers = (layer_of(name) for name in names)
    return max((layer for layer in layers if layer is not None), default=-1) + 1


def is_never_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to layers for next-token prediction, which follow a model's own layers and which
    transformers ignores (DeepSeek-V3, GLM-4 MoE, Qwen3-Next)."""
    inner = config.get("text_config")
    layers = (inner if isinstance(inner, dict) else config).get("num_hidden_layers")
    layer = _LAYER.match(name)
    is_behind = layer is not None and type(layers) is int and int(layer[1]) >= layers
    return is_behind or name.startswith(("mtp.", "model.mtp."))


@dataclass(frozen=True)
class _Names:
    """The names of a pretrained model and of a fine-tune, without wrappers' prefixes."""

    base: Folder
    model: Folder
    base_names: Mapping[str, str]
    own: Mapping[str, str]
    excludes: Callable[[str], bool]

    def best_mapping(self) -> dict[str, str] | None:
        """The fine-tune's names by the pretrained model's; None if no mapping makes all agree."""
        for mapped in self._mappings():
            if not self.missing(mapped) and not self.extra(mapped):
                return mapped
        return None

    def missing(self, mapped: Container[str]) -> list[str]:
        """Names that the fine-tune must have, and lacks."""
        return [n for n in self.base_names if n not in mapped and not self.may_lack(n) and not is_vocabulary_matrix(n)]

    def extra(self, mapped: Mapping[str, str]) -> list[str]:
        """Names that the fine-tune has, and the pretrained model would need."""
        others = set(self.unneeded(mapped))
        return [n for n in mapped if n not in self.base_names and n not in others and not is_vocabulary_matrix(n)]

    def may_lack(self, name: str) -> bool:
        """Whether the fine-tune may lack a tensor of the pretrained model, which then does not change."""
        stored = self.base.tensors[self.base_names[name]]
        return self.excludes(name) or not is_floating(stored.dtype) or is_never_loaded(name, self.base.config)

    def unneeded(self, mapped: Mapping[str, str]) -> list[str]:
        """Names that only the fine-tune has, and that the merged model does not need."""
        return [
            name
            for name, own in mapped.items()
            if name not in self.base_names
            and (
                self.excludes(name)
                or not is_floating(self.model.tensors[own].dtype)
                or is_never_loaded(name, self.model.config)
            )
        ]

    def _mappings(self) -> Iterator[dict[str, str]]:
        """The names unchanged, with a prefix removed, and with a prefix added."""
        yield dict(self.own)
        missing, extra = self.missing(self.own), self.extra(self.own)
        if not missing or not extra:
            return
        example = max(missing, key=len)
        for prefix in {name.removesuffix(example) for name in extra if name.endswith(f".{example}")}:
            yield {_without(prefix, name, self.base_names): own for name, own in self.own.items()}
        example = max(extra, key=len)
        for prefix in {name.removesuffix(example) for name in missing if name.endswith(f".{example}")}:
            yield {_with(prefix, name, self.base_names): own for name, own in self.own.items()}


def _without(prefix: str, name: str, wanted: Mapping[str, str]) -> str:
    return name.removeprefix(prefix) if name not in wanted else name


def _with(prefix: str, name: str, wanted: Mapping[str, str]) -> str:
    return f"{prefix}{name}" if name not in wanted and f"{prefix}{name}" in wanted else name


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
    """Names, with N for numbers if several share a pattern; the most frequent first."""
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
    return f"has {layers[1]} layers, but {base.folder} has {layers[0]}"


def _layers(names) -> int:
    return len({found[1] for found in map(re.compile(r"(?:layers|h|block|blocks)\.(\d+)\.").search, names) if found})


def _regex(names: Sequence[str]) -> str:
    """A regular expression for names: their last two parts."""
    endings = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
    return "|".join(map(re.escape, endings[:3])) if len(endings) <= 3 else re.escape(names[0])
