"""The files of a merged model beside its weights, and the form of those."""

import shutil
from pathlib import Path

from model_merging_methods.checkpoints.aligned_models import AlignedModels, tokenizer_folder
from model_merging_methods.checkpoints.checkpoint_writer import TensorForm
from model_merging_methods.checkpoints.tokenizer_writing import write_tokenizer
from model_merging_methods.kernels.stored_dtypes import SHORT_NAMES, is_floating
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import MergeRequest
from utils.whole_files import write_json


def output_forms(models: AlignedModels, parameters: MergeParameters) -> dict[str, TensorForm]:
    """The dtype and shape in which each parameter is saved."""
    if parameters.dtype is None:
        return models.forms
    dtype = SHORT_NAMES[parameters.dtype]
    return {
        name: TensorForm(dtype, form.shape) if is_floating(form.dtype) else form for name, form in models.forms.items()
    }


def write_configs(models: AlignedModels, parameters: MergeParameters, folder: Path) -> None:
    """The pretrained model's config and generation config, with the merged rows and the saved dtype."""
    pretrained = models.models[0]
    config = dict(pretrained.config)
    if models.vocabulary.rows:
        if "vocab_size" in (config.get("text_config") or ()):
            config["text_config"] = {**config["text_config"], "vocab_size": models.vocabulary.rows}
        else:
            config["vocab_size"] = models.vocabulary.rows
    if models.must_untie:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    if parameters.dtype is not None:
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
            config[key] = parameters.dtype
    write_json(folder / "config.json", config)
    if (pretrained.folder / "generation_config.json").exists():
        shutil.copyfile(pretrained.folder / "generation_config.json", folder / "generation_config.json")


def write_merged_tokenizer(request: MergeRequest, models: AlignedModels, role: str, folder: Path) -> None:
    """The tokenizer of a role's model, with its tokens at the merged rows.

    Raises UserError for one that cannot take them."""
    pretrained, *finetuned = models.models
    source = tokenizer_folder(finetuned[list(request.finetuned).index(role)], pretrained)
    write_tokenizer(source, folder, models.vocabulary.tokens)
