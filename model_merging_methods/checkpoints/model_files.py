"""Write the files of a merged model other than its weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.aligned_models import AlignedModels
from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.checkpoint_writer import TensorForm
from model_merging_methods.checkpoints.configs import (
    GENERATION_CONFIG,
    generation_config,
    merged_config,
    take_token_ids,
)
from model_merging_methods.checkpoints.tokenizer_reading import read_tokens
from model_merging_methods.checkpoints.vocabulary import new_ids, write_tokenizer
from model_merging_methods.kernels.stored_dtypes import SHORT_NAMES, is_floating
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import PRETRAINED, MergeRequest
from utils.custom_code import code_files
from utils.whole_files import write_json


def output_forms(models: AlignedModels, parameters: MergeParameters) -> dict[str, TensorForm]:
    """The dtype and shape in which each parameter is saved."""
    if parameters.dtype is None:
        return models.forms
    dtype = SHORT_NAMES[parameters.dtype]
    return {
        name: TensorForm(dtype, form.shape) if is_floating(form.dtype) else form for name, form in models.forms.items()
    }


def write_model_files(request: MergeRequest, models: AlignedModels, role: str, folder: Path) -> None:
    """Put config, generation config, tokenizer and code files into a merged model's folder.

    Tokenizer, chat template and stop tokens come from the role's model, with the merged token ids. Raises
    UserError for a tokenizer that cannot be changed this way.
    """
    by_role = dict(zip(request.inputs, models.models, strict=True))
    _write_config(request.parameters, models, by_role, role, folder)
    stopping = by_role[request.parameters.config_from or role]
    source = stopping.folder
    if stopping.is_adapter and not (source / GENERATION_CONFIG).exists():
        source = by_role[PRETRAINED].folder
    generation = generation_config(source, new_ids(source, models.vocabulary.tokens))
    if generation is not None:
        write_json(folder / GENERATION_CONFIG, generation)
    tokenizer = _tokenizer_folder(by_role, role)
    for path in [file for model in (by_role[PRETRAINED].folder, tokenizer) for file in code_files(model)]:
        shutil.copyfile(path, folder / path.name)
    write_tokenizer(tokenizer, folder, models.vocabulary.tokens)


def _write_config(
    parameters: MergeParameters,
    models: AlignedModels,
    by_role: Mapping[str, CheckpointFolder],
    role: str,
    folder: Path,
) -> None:
    config = merged_config(by_role, parameters.config_from)
    stopping = by_role[parameters.config_from or role]
    # An adapter's config is the pretrained model's, whose ids do not change.
    ids = {} if stopping.is_adapter else new_ids(stopping.folder, models.vocabulary.tokens)
    take_token_ids(config, stopping.config, ids)
    if models.vocabulary.rows:
        place = config["text_config"] if "vocab_size" in (config.get("text_config") or ()) else config
        place["vocab_size"] = models.vocabulary.rows
    if models.must_untie:
        for place in (config, config.get("text_config")):
            if isinstance(place, dict):
                place["tie_word_embeddings"] = False
    if parameters.dtype is not None:
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
            config[key] = parameters.dtype
    write_json(folder / "config.json", config)


def _tokenizer_folder(by_role: Mapping[str, Any], role: str) -> Path:
    """The folder of a role's tokenizer: its own, else the pretrained model's, else the first that has one."""
    folders = [by_role[role].folder, *(model.folder for model in by_role.values())]
    return next((folder for folder in folders if read_tokens(folder) is not None), by_role[PRETRAINED].folder)
