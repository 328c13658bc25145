"""Models out of folders, through transformers: with every weight that they need, or refused in one line."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.json_files import read_json_object
from utils.transformers_classes import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    quiet_transformers,
)
from utils.weight_files import INNER_WRAPPERS, OUTER_WRAPPERS

# What training leaves before the names of a model's tensors, and which wrapper does.
WRAPPERS = INNER_WRAPPERS | OUTER_WRAPPERS
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@contextmanager
def refusals_in_one_line(model_folder: Path, package: str) -> Iterator[None]:
    """Turn what `package` raises on a model that it cannot load into a UserError with the reason, and keep
    transformers quiet beside that."""
    try:
        _check_json_files(model_folder)
        with quiet_transformers():
            yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{model_folder}: a weight file (*.bin) is broken or holds more than tensors, which is not safe to load; "
            "download the model again, as safetensors"
        ) from error
    except Exception as error:
        # The packages raise errors of a dozen unrelated kinds on what they find in a folder.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{model_folder}: {package} cannot load this model ({type(error).__name__}: {reason}); {_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):  # of the package that a quantised model takes
        return "install what it names, choose another --backend, or run the model that is not quantised"
    if "trust_remote_code" in str(error):
        return "code of a checkpoint is never run; choose a model that transformers itself has"
    if "Unrecognized configuration class" in str(error):
        return "choose a model that continues text"
    return "copy or download it again, or choose another --backend"


def load_config(model_folder: Path) -> PreTrainedConfig:
    """The config of a model with attention. Raises UserError for a model without, such as Mamba."""
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        raise UserError(
            f"{model_folder}: a {config.model_type} model has no attention heads, and only models with attention "
            "are run here; choose another model"
        )
    return config


def load_model(model_folder: Path | None, model_class: type = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """The model, with `options` of `from_pretrained`; folder None: of the `state_dict` among them.

    Raises UserError where a tensor is missing or of another shape: transformers itself would go on with
    random numbers in its place.
    """
    model, found = model_class.from_pretrained(
        model_folder, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
    )
    if found["missing_keys"]:
        raise UserError(_missing_tensors(model_folder, sorted(found["missing_keys"]), sorted(found["unexpected_keys"])))
    for name, stored, needed in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{model_folder}: tensor {name} has the shape {' x '.join(map(str, stored))}, and config.json asks for "
            f"{' x '.join(map(str, needed))}; copy or download the model again"
        )
    return model


def _missing_tensors(model_folder: Path, missing: list[str], others: list[str]) -> str:
    """What to say of a folder that lacks tensors, and may hold others under names that transformers does not know."""
    wrapper = next((name for name in WRAPPERS if others and all(other.startswith(name) for other in others)), None)
    if wrapper is not None:
        return (
            f"{model_folder}: the names of its tensors begin with {wrapper} ({WRAPPERS[wrapper]}); save the model that "
            "is inside"
        )
    lacks = f"{model_folder} lacks tensor {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    instead = f", and holds {len(others)} that it does not need ({others[0]})" if others else ""
    return f"{lacks}{instead}; copy or download the model again, or save it as a causal language model"


def model_without_weights(model_folder: Path, config: PreTrainedConfig, dtype: str, device: str) -> PreTrainedModel:
    """A model of the config's shape, with arbitrary weights and the folder's generation config."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.generation_config = generation_config(model_folder)
    return model


def generation_config(model_folder: Path) -> GenerationConfig:
    """How a model draws and where it stops: by its generation config, or its config where it has none."""
    with quiet_transformers():
        if (model_folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(model_folder)
        return GenerationConfig.from_model_config(load_config(model_folder))


def check_weights(model_folder: Path, config: PreTrainedConfig) -> None:
    """Raise as `load_model`, from the heads of the weight files: for engines that pass over what is missing."""
    # Quantised checkpoints name their tensors in ways that only their engine knows.
    if getattr(config, "quantization_config", None) is None:
        load_model(model_folder, device_map="meta")


def _check_json_files(model_folder: Path) -> None:
    for name in JSON_FILES:
        if (model_folder / name).is_file():
            read_json_object(model_folder / name, "copy or download it again")
