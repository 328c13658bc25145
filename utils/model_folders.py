"""Find a model's folder: a path, one of the paper's names, or a hub id, which is downloaded."""

import contextlib
import fnmatch
import glob
import json
import logging
import re
import sys
from collections.abc import Collection
from pathlib import Path

from utils.command_line import expanded_path
from utils.errors import UserError
from utils.hub_headers import write_headers
from utils.tokenizer_files import VOCABULARY_PATTERNS

log = logging.getLogger(__name__)

# The paper's names, by role, in model order; and the same models on the hub.
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

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WEIGHTS = {  # by kind of file, the preferred kind first
    ".safetensors": ("model*.safetensors", "adapter_model.safetensors"),
    ".bin": ("pytorch_model*.bin", "adapter_model.bin"),
}
_SMALL_FILES = ("*.json", "*.txt", "*.codes", "*.py", *VOCABULARY_PATTERNS, "*.jinja")
_CHAT_TEMPLATES = "additional_chat_templates/"
_HUB_REMEDIES = {
    "GatedRepoError": "accept its licence on its page there, and log in with `hf auth login`",
    "RepositoryNotFoundError": "check its name; if it is private, log in with `hf auth login`",
}


def paper_model_folder(name: str, models_dir: Path | None, headers_in: Path | None = None) -> Path:
    """The folder of one of the paper's models: `name` in `models_dir` (default: working folder), or from the hub.
    `headers_in`: as in `find_model_folder`."""
    local = (models_dir or Path()) / name
    if local.is_dir():
        return local
    try:
        return find_model_folder(HUB_IDS[name], headers_in=headers_in)
    except UserError as error:
        raise UserError(
            f"{local}: no such folder; {error}, or give the folder that contains it with --models_dir"
        ) from error


def find_model_folder(path_or_hub_id: str, revision: str | None = None, headers_in: Path | None = None) -> Path:
    """The folder at a path, or of a hub id, whose weights and tokenizer are downloaded if they are not in the cache,
    with progress on a terminal. Without a connection, a complete earlier download is used. `revision` is a branch, tag
    or commit of the hub; it may also follow the hub id, as `id@revision`. With `headers_in`, models that are not in the
    cache are not downloaded: a folder below it gets their small files and the headers of their weights.

    Raises UserError with a remedy if there is neither.
    """
    path = expanded_path(path_or_hub_id)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path_or_hub_id}: is a file; give a model folder")
    hub_id, _, pinned = path_or_hub_id.partition("@")
    if revision is None and pinned and _HUB_ID.fullmatch(hub_id):
        path_or_hub_id, revision = hub_id, pinned
    if not _HUB_ID.fullmatch(path_or_hub_id):
        raise UserError(f"{path_or_hub_id}: no such model folder")
    try:
        if headers_in is None:
            return _download(path_or_hub_id, revision)
        return _whole_download(path_or_hub_id, revision) or _headers_of(path_or_hub_id, revision, headers_in)
    except UserError:
        raise
    except Exception as error:  # of the hub, the network and the disk, of many kinds
        cached = _whole_download(path_or_hub_id, revision)
        if cached is not None:
            log.info("%s: the hub does not answer; using the copy downloaded earlier", path_or_hub_id)
            return cached
        remedy = _HUB_REMEDIES.get(type(error).__name__, "download it and give its path")
        raise UserError(
            f"{path_or_hub_id}: no such folder here, and not available from the hub ({type(error).__name__}); {remedy}"
        ) from error


def local_model_folder(path_or_hub_id: str, root: Path) -> Path | None:
    """The folder at a path below `root`, or of a downloaded hub id; None if neither is on this machine."""
    path = root / path_or_hub_id
    return path if path.is_dir() else _whole_download(path_or_hub_id)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    names = [file.rfilename for file in model_info(hub_id, revision=revision).siblings]
    kind = next((kind for kind in _WEIGHTS if any("/" not in name and name.endswith(kind) for name in names)), ".bin")
    log.info("%s: downloading missing files", hub_id)
    wanted = [glob.escape(name) for name in names if _is_wanted(name, kind)]
    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))


def _headers_of(hub_id: str, revision: str | None, headers_in: Path) -> Path:
    """The folder with a model's headers. Weights that are not safetensors have none, and are left out."""
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    info = model_info(hub_id, revision=revision, files_metadata=True)
    wanted = [file for file in info.siblings if _is_wanted(file.rfilename, ".safetensors")]
    weights = {file.rfilename: file.size for file in wanted if file.rfilename.endswith(".safetensors")}
    small = [glob.escape(file.rfilename) for file in wanted if file.rfilename not in weights]
    folder = snapshot_download(hub_id, revision=info.sha, allow_patterns=small)
    place = headers_in / f"models--{hub_id.replace('/', '--')}" / "snapshots" / info.sha  # as in the hub's cache
    if not place.exists():
        write_headers(hub_id, info.sha, Path(folder), weights, place)
    return place


def hub_source(folder: Path) -> dict[str, str] | None:
    """The hub id and the commit of a folder in the hub's cache; None for another folder."""
    parts = folder.resolve().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return {"id": parts[-3].removeprefix("models--").replace("--", "/", 1), "commit": parts[-1]}


def written_place(folder: Path) -> str:
    """The folder's path, or `id@commit` for a folder in the hub's cache."""
    source = hub_source(folder)
    return f"{source['id']}@{source['commit']}" if source else str(folder)


def folder_name(folder: Path) -> str:
    """The folder's name, or the model's name on the hub for a folder in the hub's cache."""
    source = hub_source(folder)
    return source["id"].split("/")[-1] if source else folder.resolve().name


def _is_wanted(name: str, kind: str) -> bool:
    """Whether a file belongs to a model with weights of this kind. Files in subfolders do not, nor do copies of the
    weights for other programs (*.pth, consolidated.*, *.gguf)."""
    in_folder = "/" in name and not name.startswith(_CHAT_TEMPLATES)
    return not in_folder and any(fnmatch.fnmatch(name, pattern) for pattern in (*_WEIGHTS[kind], *_SMALL_FILES))


def _whole_download(hub_id: str, revision: str | None = None) -> Path | None:
    """The cached download of a hub id, if it is complete."""
    from huggingface_hub import snapshot_download

    for kind in _WEIGHTS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            wanted = [*_WEIGHTS[kind], *_SMALL_FILES]
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    local_files_only=True,
                    allow_patterns=wanted,
                    ignore_patterns=["*/*"],
                )
            )
            found = {path.name for path in folder.glob(f"*{kind}") if path.exists()}
            shards = [
                name
                for index in folder.glob(f"*{kind}.index.json")
                for name in json.loads(index.read_text())["weight_map"].values()
            ]
            if found and found.issuperset(shards):
                return folder
    return None


def free_name(name: str, taken: Collection[str]) -> str:
    """A name, or if it is taken the name with the first free number from 2 on."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    return free
