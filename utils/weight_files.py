"""Find the weight files of a folder, or describe the folder's content if there are none."""

import re
from collections.abc import Mapping
from pathlib import Path

from utils.errors import UserError
from utils.json_files import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the first that exists, as in PEFT

# Prefixes of programs that wrap a model: before the name of any module, and before whole names.
INNER_WRAPPERS = {
    "_orig_mod.": "of torch.compile",
    "_fsdp_wrapped_module.": "of FSDP",
    "_checkpoint_wrapped_module.": "of activation checkpointing",
}
OUTER_WRAPPERS = {"module.": "of DataParallel or DeepSpeed", "base_model.model.": "of PEFT"}

_SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)")
# Formats that are not read here, by file extension, with the remedy.
_OTHER_FORMATS = {
    ".gguf": "GGUF files, which are for llama.cpp; give the folder they were converted from",
    ".pth": "PyTorch files of another program (.pth); convert them with that program's script for Hugging Face",
    ".pt": "PyTorch files of another program (.pt); save the model with save_pretrained()",
    ".h5": "only TensorFlow weights; load them with from_pretrained(..., from_tf=True) and save_pretrained()",
    ".msgpack": "only Flax weights; load them with from_pretrained(..., from_flax=True) and save_pretrained()",
    ".onnx": "only ONNX files; give the folder they were exported from",
    ".npz": "MLX weights; give the folder they were converted from",
    ".nemo": "a NeMo archive; convert it with NeMo's script for Hugging Face",
    ".distcp": "shards of a distributed checkpoint; consolidate them and save_pretrained()",
}
# Files that a Trainer writes beside weights.
_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "scaler", "training_args")


def index_file(folder: Path) -> Path | None:
    """The index of a sharded checkpoint; None for a single file, and for shards without an index. As in transformers,
    safetensors come before pickled weights, and a single file before shards."""
    for single, index in ((SINGLE_FILE, INDEX_FILE), (PICKLED_FILE, PICKLED_INDEX_FILE)):
        if (folder / single).exists():
            return None
        if (folder / index).exists():
            return folder / index
    return None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises UserError if there are none or one is missing."""
    index = index_file(folder)
    if index is None:
        return _files_without_index(folder)
    files = [folder / name for name in sorted(set(weight_map(index).values()))]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: this shard is missing although {index.name} lists it; download it")
    return files


def weight_map(index: Path) -> Mapping[str, str]:
    """The file of each tensor, from an index."""
    places = read_json_object(index, "download it again").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map; download it again")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names a shard outside its folder ({name}); download the model again")
    return places


def ignored_pickled_files(folder: Path) -> list[str]:
    """Names of pickled weights in a folder whose safetensors files are read instead."""
    if weight_files(folder)[0].suffix == ".bin":
        return []
    return sorted(path.name for path in folder.glob("pytorch_model*.bin"))


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder contains a PEFT adapter."""
    return (folder / ADAPTER_CONFIG_FILE).is_file()


def adapter_files(folder: Path) -> list[Path]:
    """The config and weights of an adapter. Raises UserError if it has no weights."""
    for name in ADAPTER_WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / ADAPTER_CONFIG_FILE, folder / name]
    raise UserError(f"{folder}: holds no adapter weights ({' or '.join(ADAPTER_WEIGHT_FILES)}); download them")


def _files_without_index(folder: Path) -> list[Path]:
    for name in (SINGLE_FILE, PICKLED_FILE):
        if (folder / name).exists():
            return [folder / name]
    sets: dict[tuple[str, str, str], list[Path]] = {}
    for path in sorted(folder.iterdir()):
        shard = _SHARD.fullmatch(path.name)
        if shard:
            sets.setdefault((shard[4], shard[1], shard[3]), []).append(path)
    if not sets:
        raise UserError(f"{folder} has {_describe_content(folder)}")
    (ending, stem, total), files = max(sets.items())  # safetensors before bin
    same_kind = [key for key in sets if key[0] == ending]
    if len(same_kind) > 1:
        raise UserError(f"{folder} has shards of {len(same_kind)} checkpoints and no index; remove the old ones")
    if len(files) != int(total):
        raise UserError(
            f"{folder} has {len(files)} of the {int(total)} shards {stem}-…-of-{total}.{ending}, and no index; "
            "download the others"
        )
    return files


def _describe_content(folder: Path) -> str:
    """The content of a folder without weights under a known name, with the remedy."""
    names = sorted(path.name for path in folder.iterdir())
    checkpoints = [name for name in names if re.fullmatch(r"checkpoint-\d+", name) and (folder / name).is_dir()]
    if checkpoints:
        latest = max(checkpoints, key=lambda name: int(name.split("-")[1]))
        return f"only a Trainer's checkpoints ({', '.join(checkpoints)}); give one of them, such as {latest}"
    if "zero_to_fp32.py" in names or any(re.fullmatch(r"global_step\d+", name) for name in names):
        return "a DeepSpeed checkpoint; convert it with its zero_to_fp32.py, and give the resulting folder"
    if ADAPTER_CONFIG_FILE in names:
        return "a LoRA adapter, not a whole model; give the model it was made for as the pretrained model"
    if any(name.startswith("consolidated") for name in names):
        return "the original files of another program (consolidated.*); download the Hugging Face files or convert them"
    weights = [name for name in names if not name.startswith(_TRAINING_STATE)]
    for ending, what in _OTHER_FORMATS.items():
        if any(name.endswith(ending) for name in weights):
            return what
    others = [name for name in weights if name.endswith((".safetensors", ".bin"))]
    known = f"no weights under names that transformers reads ({SINGLE_FILE}, {PICKLED_FILE} or their shards)"
    if others:
        return f"{known}, only {', '.join(others[:3])}; rename them, or save the model with save_pretrained()"
    return f"{known}; download them"
