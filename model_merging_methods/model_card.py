"""The model card of a merged model: its models, method and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import RECORD_FILE
from model_merging_methods.merge_request import MergeRequest, NamedRecipe
from model_merging_methods.method import Value
from utils.model_folders import hub_source


def model_card(request: MergeRequest, tokenizer_from: str, warnings: Sequence[str] = ()) -> str:
    """The README.md of a merged model folder, with the warnings about its inputs. It has no timestamps, so the same
    merge always gives the same card."""
    models = "\n".join(f"* {role}: `{model_name(folder)}`{_commit(folder)}" for role, folder in request.all_folders())
    names = "\n".join(dict.fromkeys(f"- {model_name(folder)}" for _, folder in request.all_folders()))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
base_model:
{names}
tags:
- merge
---
# {" + ".join(request.finetuned or request.inputs)}: {request.parameters.merging_method_name}

A merge of {"these models" if request.recipe else "all parameters of these fine-tunes of one pretrained model"}:

{models}

Method: `{request.parameters.method}`{_extras(request.parameters)}. {request.parameters.declared.summary}
Source: {request.parameters.declared.paper}.

{_recipe(request.recipe) if request.recipe else _parameters(request, tokenizer_from)}

`{RECORD_FILE}` holds every parameter, the inputs' sizes and fingerprints, and the package versions. To make the same
model again, run `merge_llms_instruct_math_code.py --from_record {RECORD_FILE}`.
{_warnings(warnings)}"""


def _commit(folder: Path) -> str:
    source = hub_source(folder)
    return f" at commit `{source['commit']}`" if source else ""


def model_name(folder: Path) -> str:
    """The folder's name, or the model's id for a folder in the hub's cache."""
    source = hub_source(folder)
    return source["id"] if source else folder.resolve().name


def _recipe(named: NamedRecipe) -> str:
    """The recipe, with roles for models, after those that make its models."""
    text = "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True) for one in _documents(named))
    return f"Its recipe, in mergekit's form, with the models' roles:\n\n```yaml\n{text}```"


def _documents(named: NamedRecipe) -> Iterator[Mapping[str, Any]]:
    for request in named.made.values():
        yield from _documents(request.recipe)
    seed = {"seed": named.recipe.seed} if named.recipe.is_random else {}  # the command may have given it
    yield {**named.fields["document"], **seed}


def _parameters(request: MergeRequest, tokenizer_from: str) -> str:
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(request.parameters, list(request.finetuned)))
    return f"{_origins(request.parameters, tokenizer_from)}\n\n| parameter | value |\n|---|---|\n{facts}"


def _origins(parameters: MergeParameters, role: str) -> str:
    if parameters.config_from is not None:
        source = parameters.config_from
        return f"The tokenizer is the {role} model's; config and generation config are the {source} model's."
    return (
        f"Tokenizer, chat template, generation config and stop tokens are the {role} model's. The config is the "
        "pretrained model's, with the settings on which all fine-tunes agree."
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return "\n## Differences between the models\n\n" + "".join(f"* {text}\n" for text in warnings)


def _extras(parameters: MergeParameters) -> str:
    masked = f", after the mask `{parameters.mask.name}` on each model" if parameters.mask else ""
    return masked + (", interpolated at the ratios of M3 (Mixup Model Merge)" if parameters.mixup else "")


def _facts(parameters: MergeParameters, roles: Sequence[str]) -> list[tuple[str, str]]:
    facts = [("method", parameters.method)]
    facts += [(name, _by_model(value, roles)) for name, value in parameters.options]
    if parameters.mask is not None:
        mask = parameters.mask
        facts.append(("mask", f"{mask.name}, over {mask.weight_format}: {mask.declared.summary}"))
        facts += [(f"{name} of the mask", _by_model(value, roles)) for name, value in mask.options]
    if parameters.mixup is not None:
        mixup = parameters.mixup
        ratios = ", ".join(f"{role} {ratio}" for role, ratio in zip(roles, mixup.ratios, strict=True))
        if mixup.by_layer:
            ratios = f"{roles[0]} {', '.join(map(str, mixup.by_layer))} from the first layer to the last"
        source = "given" if mixup.alpha is None else f"drawn with α = {mixup.alpha}"
        facts.append(("M3 interpolation ratios", f"{ratios} ({source})"))
    if parameters.uses_seed:
        facts.append(("seed", f"{parameters.seed}"))
    if parameters.exclude_param_names_regex:
        patterns = ", ".join(f"`{pattern}`" for pattern in parameters.exclude_param_names_regex)
        facts.append(("kept as in the pretrained model", f"parameters whose names match {patterns}"))
    facts.append(("dtype", parameters.dtype or "the pretrained model's"))
    return facts


def _by_model(value: Value, roles: Sequence[str]) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ", ".join(f"{role} {number}" for role, number in zip(roles, value, strict=True))
