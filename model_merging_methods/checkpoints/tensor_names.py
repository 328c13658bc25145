"""Matching the tensor names of fine-tunes with the pretrained model's.

Programs that wrap a model leave their prefixes in its names, and some save a model without the name of its body.
Such names are mapped where all of them then agree. Any other difference is explained (`name_differences`).
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_merging_methods.checkpoints.name_differences import explain_difference
from model_merging_methods.checkpoints.vocabulary_matrices import Folder, is_vocabulary_matrix
from model_merging_methods.kernels.stored_dtypes import is_floating
from utils.findings import Findings

# What torch.compile and FSDP put before the names of a module, and DataParallel, DeepSpeed and PEFT before all names.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.)+")
_LAYER = re.compile(r"(?:model\.|language_model\.model\.|model\.language_model\.)?layers\.(\d+)\.")  # of the text model


@dataclass(frozen=True)
class MatchedNames:
    """`stored` maps, for each model, the merged names to its own, as far as it has them. `kept` are names whose tensors
    not every fine-tune has, and which stay as the pretrained model has them; `left_out` names that the merged model
    will not have."""

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
        left_out = names.extra_of_no_use(mapped)
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
    """A model's own names by the names without wrappers' prefixes."""
    names: dict[str, str] = {}
    for own in model.tensors:
        name = without_wrappers(own)
        if name in names:
            findings.error(f"{model.folder}: holds {name} twice, as {names[name]} and as {own}; save the model anew")
        names[name] = own
    return names


def without_wrappers(name: str) -> str:
    """A tensor's name without the prefixes of wrappers."""
    return _OUTER_WRAPPERS.sub("", _WRAPPERS.sub("", name))


def is_never_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to layers for next-token prediction, which stand behind a model's own layers and which
    transformers passes over (DeepSeek-V3, GLM-4 MoE, Qwen3-Next)."""
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
        """The fine-tune's own names by the pretrained model's; None where no mapping makes all agree."""
        for mapped in self._mappings():
            if not self.missing(mapped) and not self.extra(mapped):
                return mapped
        return None

    def missing(self, mapped: Container[str]) -> list[str]:
        """Names that the fine-tune must have, and lacks."""
        return [n for n in self.base_names if n not in mapped and not self.may_lack(n) and not is_vocabulary_matrix(n)]

    def extra(self, mapped: Mapping[str, str]) -> list[str]:
        """Names that the fine-tune has, and the pretrained model would need."""
        others = set(self.extra_of_no_use(mapped))
        return [n for n in mapped if n not in self.base_names and n not in others and not is_vocabulary_matrix(n)]

    def may_lack(self, name: str) -> bool:
        """Whether a tensor of the pretrained model may stay as it is, so that the fine-tune need not have it."""
        stored = self.base.tensors[self.base_names[name]]
        return self.excludes(name) or not is_floating(stored.dtype) or is_never_loaded(name, self.base.config)

    def extra_of_no_use(self, mapped: Mapping[str, str]) -> list[str]:
        """Names that the fine-tune alone has, and that the merged model does not need."""
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
        """The names as they are; with a prefix less; with a prefix more."""
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
