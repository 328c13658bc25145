"""Compare the configs of a merge's models, and assemble the merged model's config and generation config.

Configs are compared by their meaning: defaults that one file leaves out, and old and new spellings of a setting, are
equal. The merged config is the pretrained model's, with the settings on which all fine-tunes agree. Stop tokens and
other token ids come from the model whose tokenizer the folder gets.
"""

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from utils.custom_code import code_modules
from utils.errors import UserError
from utils.findings import Findings
from utils.json_files import read_json_object

Config = Mapping[str, Any]
GENERATION_CONFIG = "generation_config.json"

# Settings that change the meaning of the weights.
_STRUCTURE = re.compile(
    r"hidden_act|hidden_activation|activation(_function)?|dense_act_fn|is_gated_act|feed_forward_proj"
    r"|n_heads?|num_(attention_|key_value_|kv_)?heads|(\w+_)?head_dim|d_kv|use_parallel_residual|parallel_attn"
)
# Settings without effect on a model's results, that the tensors' names and shapes show, or that belong to the
# tokenizer.
_WITHOUT_MEANING = re.compile(
    r"_.*|\w*dropout\w*|\w*_pdrop|initializer\w*|\w*_init|use_cache|router_\w*coef|router_jitter_noise|pretraining_tp|summary_\w+"
    r"|architectures|model_type|\w*version|(torch_)?dtype|auto_map|quantization_config|compression_config|unsloth_\w+"
    r"|n_layers?|num_(hidden_|decoder_)?layers|hidden_size|n_embd|d_model|(moe_)?intermediate_size|d_ff"
    r"|num_(local_)?experts|n_(routed|shared)_experts"
    r"|id2label|label2id|problem_type|finetuning_task|task_specific_params|output_\w+|return_dict|torchscript"
    r"|gradient_checkpointing|use_return_dict|is_decoder|tie_word_embeddings|vocab_size|(un)?padded_vocab_size"
    r"|tokenizer_class|max_length|min_length|do_sample|temperature|top_[kp]|num_beams|repetition_penalty|chunk_size\w+"
)
TOKEN_IDS = re.compile(r"\w*_token_(ids?|index)|suppress_tokens|begin_suppress_tokens|bad_words_ids|force_words_ids")
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq")
_SAME_ACTIVATIONS = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new"}  # two names of one function
_INACTIVE = (None, False, 0, "", [], {})
_NUMBERS_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_POSITIVE_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_length")


def check_configs(
    models: Mapping[str, CheckpointFolder], config_from: str | None, allow_unrelated: bool, findings: Findings
) -> None:
    """Report settings in which fine-tunes differ from the pretrained model, with all models by role.

    Settings that change the meaning of the weights are errors, unless `allow_unrelated`; the others are warnings.
    """
    settings = _settings_of_all(models)
    adopted = _adopted(settings, config_from)
    for name in _names(settings):
        values = {role: own.get(name) for role, own in settings.items()}
        if all(_is_same(value, values["pretrained"]) for value in values.values()):
            continue
        others = {role: value for role, value in values.items() if not _is_same(value, values["pretrained"])}
        text = f"config.json: {name} is {_by_value(others)}, {_shown(values['pretrained'])} in the pretrained model"
        # If transformers does not know the family, the default is unknown and may be the same value.
        is_left_out = None in values.values()
        if _STRUCTURE.fullmatch(name) and not is_left_out and not allow_unrelated:
            roles = " and ".join(f"model {role}" for role in others)
            findings.error(
                f"{text}, which changes the meaning of the weights; choose another {roles}, or add --allow_unrelated"
            )
            continue
        chosen = adopted.get(name, values["pretrained"])
        advice = "" if name in adopted else "; choose another model's with --config_from"
        findings.warn(f"{text}; the merged config has {_shown(chosen)}{advice}")
    for role, model in models.items():
        for key in ("model_type", "architectures"):
            own, base = model.config.get(key), models["pretrained"].config.get(key)
            if own and base and own != base:
                kept = own if config_from == role else base
                text = f"config.json: {key} is {_shown(own)} in {role}, {_shown(base)} in the pretrained model"
                findings.warn(f"{text}; the merged config has {_shown(kept)}")


def check_vocabulary_sizes(models: Mapping[str, CheckpointFolder], rows: Mapping[str, int], findings: Findings) -> None:
    """Report configs, by role, whose vocabulary size is not the number of rows of their matrices."""
    for role, model in models.items():
        stated = _inner(model.config).get("vocab_size", rows[role])
        if rows[role] and stated != rows[role] and not model.is_adapter:
            findings.warn(
                f"config.json: vocab_size is {_shown(stated)} in {role}, whose matrices have {rows[role]} rows; the "
                "merged config has the number of its rows"
            )


def check_custom_code(models: Mapping[str, CheckpointFolder], findings: Findings) -> None:
    """Report models, by role, whose config names code, which is never executed here."""
    named: dict[str, list[str]] = {}
    for role, model in models.items():
        modules = code_modules(model.config)
        if modules:
            named.setdefault(", ".join(modules), []).append(role)
    for modules, roles in named.items():
        findings.warn(
            f"config.json: auto_map of {' and '.join(roles)} names code ({modules}), which is never run here; the "
            "merged folder has a copy of the code files"
        )


def merged_config(models: Mapping[str, CheckpointFolder], config_from: str | None) -> dict[str, Any]:
    """The config of the merged model, except token ids, vocabulary rows and dtype."""
    config = deepcopy(dict(models[config_from or "pretrained"].config))
    if config_from is not None:
        return config
    settings = _settings_of_all(models)
    agreeing = next(model for role, model in models.items() if role != "pretrained").config
    for name, value in _adopted(settings, None).items():
        if not _is_same(value, settings["pretrained"].get(name)):
            _set(config, name, value, _inner(agreeing))
    if not config.get("architectures"):
        named = (model.config.get("architectures") for model in models.values())
        config["architectures"] = next((names for names in named if names), None)
    return config


def take_token_ids(config: dict[str, Any], source: Config, new_ids: Mapping[int, int]) -> None:
    """Give a config the token ids of another, renumbered."""
    for key in [key for key in config if TOKEN_IDS.fullmatch(key)]:
        del config[key]
    config.update({key: renumbered(value, new_ids) for key, value in source.items() if TOKEN_IDS.fullmatch(key)})
    if isinstance(config.get("text_config"), dict) and isinstance(source.get("text_config"), dict):
        take_token_ids(config["text_config"], source["text_config"], new_ids)


def renumbered(value: Any, new_ids: Mapping[int, int]) -> Any:
    """A token id, or lists of them, with the merged vocabulary's ids."""
    if isinstance(value, list):
        return [renumbered(item, new_ids) for item in value]
    return new_ids.get(value, value) if type(value) is int else value


def number_of_layers(config: Config) -> int | None:
    """The number of layers in a config; None if it has no such setting."""
    place = _inner(config)
    return next((place[key] for key in _NUMBERS_OF_LAYERS if isinstance(place.get(key), int)), None)


def set_layers(config: dict[str, Any], layers: list[int]) -> None:
    """Change a config to a model of these of its layers: their number, and every list with an entry for each layer."""
    place, before = _inner(config), number_of_layers(config)
    for key, value in place.items():
        if key in _NUMBERS_OF_LAYERS:
            place[key] = len(layers)
        elif isinstance(value, list) and len(value) == before:
            place[key] = [value[layer] for layer in layers]


def _settings_of_all(models: Mapping[str, CheckpointFolder]) -> dict[str, dict[str, Any]]:
    """Each model's settings, by role."""
    configs = {role: model.config for role, model in models.items()}
    plain = {role: _flat(config) for role, config in configs.items()}
    families = [config.get("model_type") for config in configs.values()]
    is_one_family = all(family == families[0] for family in families)
    if is_one_family and all(settings == plain["pretrained"] for settings in plain.values()):
        return plain  # without the seconds that transformers takes to load
    full = {role: _with_defaults(json.dumps(config)) for role, config in configs.items()}
    return plain if None in full.values() else full


@cache
def _with_defaults(config: str) -> dict[str, Any] | None:
    """The settings of a config as transformers reads it, defaults included; None for an unknown family."""
    from utils.transformers_configs import config_with_defaults

    filled = config_with_defaults(json.loads(config))
    return None if filled is None else _flat(filled)


def _flat(config: Config) -> dict[str, Any]:
    """The settings that matter here, those of the language model without the prefix `text_config`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and not _WITHOUT_MEANING.fullmatch(key):
            prefix = "" if key == "text_config" else f"{key}."
            flat |= {prefix + inner: setting for inner, setting in _flat(value).items()}
        elif not _WITHOUT_MEANING.fullmatch(key) and not TOKEN_IDS.fullmatch(key) and value is not None:
            flat[key] = _without_old_names(value)
    return flat


def _without_old_names(value: Any) -> Any:
    """Rope settings without `type`, which transformers keeps beside `rope_type`; activations under one name."""
    if not isinstance(value, dict):
        return _SAME_ACTIVATIONS.get(value, value) if isinstance(value, str) else value
    return {k: _without_old_names(v) for k, v in value.items() if not (k == "type" and "rope_type" in value)}


def _names(settings: Mapping[str, Config]) -> Iterator[str]:
    """All settings; those of encoders beside the language model only if each model has them."""
    own = list(settings.values())
    for name in dict.fromkeys(name for config in own for name in config):
        if "." not in name or all(name in config for config in own):
            yield name


def _adopted(settings: Mapping[str, Config], config_from: str | None) -> dict[str, Any]:
    """The settings that replace the pretrained model's in the merged config. The model of `config_from` is missing if
    it cannot be read."""
    if config_from in settings:
        return {name: settings[config_from].get(name) for name in _names(settings)}
    first, *others = [own for role, own in settings.items() if role != "pretrained"]
    return {
        name: first.get(name)
        for name in _names(settings)
        if all(_is_same(own.get(name), first.get(name)) for own in others)
    }


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same: a setting that is off equals one that is left out."""
    return one == other or (one in _INACTIVE and other is None) or (one is None and other in _INACTIVE)


def _set(config: dict[str, Any], name: str, value: Any, source: Config) -> None:
    """Change a setting in place; rope in the spelling of `source`, because versions of transformers differ."""
    place = config
    *prefix, key = name.split(".")
    if prefix:
        place = config[prefix[0]]
    elif isinstance(config.get("text_config"), dict):
        place = config["text_config"]
    changed = {key: value}
    if key in _ROPE:
        for old in _ROPE:
            place.pop(old, None)
        changed = {old: source[old] for old in _ROPE if old in source} or changed
    place.update(changed)


def _inner(config: Config) -> Config:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _by_value(values: Mapping[str, Any]) -> str:
    """Such as `10 in math and code, 20 in instruct`."""
    roles: dict[str, list[str]] = {}
    for role, value in values.items():
        roles.setdefault(_shown(value), []).append(role)
    return ", ".join(f"{value} in {' and '.join(names)}" for value, names in roles.items())


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "..."


def generation_config(folder: Path, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    """The valid part of a folder's generation config, with the merged token ids; None for a folder without one."""
    kept = _read_generation_config(folder)[0]
    if kept is None:
        return None
    return {key: renumbered(value, new_ids) if TOKEN_IDS.fullmatch(key) else value for key, value in kept.items()}


def check_generation_configs(folders: Mapping[str, Path], findings: Findings) -> None:
    """Report generation configs, by role, that are partly or entirely invalid."""
    for role, folder in folders.items():
        fault = _read_generation_config(folder)[1]
        if fault is not None:
            findings.warn(f"{role}: {GENERATION_CONFIG} {fault}")


def _read_generation_config(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The valid part of a folder's generation config, and why the rest is invalid."""
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return None, None
    try:
        content = read_json_object(path, "")
    except UserError as error:
        reason = str(error).removeprefix(str(path)).strip(" ;")
        return None, f"{reason}; it is ignored, and the stop tokens are those in config.json"
    if all(_is_plain(key, value) for key, value in content.items()):
        return content, None
    from utils.transformers_configs import why_no_generation_config

    reason = why_no_generation_config(content)
    if reason is None:
        return content, None
    kept = {key: value for key, value in content.items() if _is_plain(key, value)}
    return kept, f"is refused by transformers ({reason}); the merged model gets {', '.join(kept) or 'nothing'} from it"


def _is_plain(key: str, value: Any) -> bool:
    """Whether transformers certainly accepts a value. Asking transformers would take seconds to import it."""
    if TOKEN_IDS.fullmatch(key):
        ids = value if isinstance(value, list) else [value]
        return value is None or all(type(item) is int for item in ids)
    if key in _POSITIVE_NUMBERS:
        return value is None or (isinstance(value, (int, float)) and value > 0)
    return key in ("transformers_version", "_from_model_config", "do_sample") and isinstance(
        value, (str, bool, type(None))
    )
