"""The paper's models, and where a model's folder is found."""

import re
from pathlib import Path

from utils.errors import UserError

# Name in the paper, by role, in model order; and the same model on the hub.
PRETRAINED_MODEL = "Llama-2-13b-hf"
FINETUNED_MODELS = {
    "instruct": "WizardLM-13B-V1.2",
    "math": "WizardMath-13B-V1.0",
    "code": "llama-2-13b-code-alpaca",
}
HUB_IDS = {
    "Llama-2-13b-hf": "meta-llama/Llama-2-13b-hf",
    "WizardLM-13B-V1.2": "WizardLMTeam/WizardLM-13B-V1.2",
    "WizardMath-13B-V1.0": "WizardLMTeam/WizardMath-13B-V1.0",
    "llama-2-13b-code-alpaca": "layoric/llama-2-13b-code-alpaca",
}

# What decides how a model's text is cut into tokens, wherever a folder has it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


def paper_model_folder(name: str, models_dir: Path | None) -> Path:
    """The folder of one of the paper's models: `name` in `models_dir` (default: the working folder), else
    downloaded from the hub."""
    local = (models_dir or Path()) / name
    if local.is_dir():
        return local
    try:
        return find_model_folder(HUB_IDS[name])
    except UserError as error:
        raise UserError(f"{local}: no such folder; {error}") from error


def find_model_folder(path_or_hub_id: str) -> Path:
    """The folder at a path, or of a hub id, whose weights and tokenizer are downloaded where they are not yet.

    Raises UserError where there is neither.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(path_or_hub_id) or path.exists():
        raise UserError(f"{path_or_hub_id}: no such model folder")

    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(path_or_hub_id)
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
        return Path(snapshot_download(path_or_hub_id, allow_patterns=[weights, *_SMALL_FILES]))
    except Exception as error:
        raise UserError(
            f"{path_or_hub_id}: no such folder here, and not to be had from the hub ({type(error).__name__}); "
            "download it and give its path, or the folder that holds it with --models_dir"
        ) from error
