"""LoRA adapters as PEFT saves them, applied to stretches of the pretrained model's tensors.

A low-rank change is W = W0 + s·B·A (Hu et al. 2021, section 4.1), with s = alpha / r, or alpha / √r for
rank-stabilized LoRA. Whole tensors in an adapter (modules_to_save, biases, embeddings of a vocabulary that grew)
replace the pretrained model's, and a low-rank change may come on top. The result equals that of
PEFT's `merge_and_unload()`.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import (
    CheckpointFolder,
    read_float32,
    read_stored,
    read_weight_file,
    to_float32,
)
from model_merging_methods.checkpoints.tensor_names import without_wrappers
from model_merging_methods.checkpoints.tokenizer_reading import read_tokens
from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS, OUTPUT_BIASES, OUTPUT_EMBEDDINGS
from model_merging_methods.kernels.compiling import CHUNK, ZERO, exact_with_arrays
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES
from utils.errors import UserError
from utils.hub_headers import holds_headers_only
from utils.json_files import read_json_object
from utils.safetensors_files import StoredTensor
from utils.weight_files import (
    ADAPTER_CONFIG_FILE,
    INDEX_FILE,
    PICKLED_FILE,
    PICKLED_INDEX_FILE,
    SINGLE_FILE,
    adapter_files,
)

# The settings of LoraConfig that are applied here, and those without effect once the adapter is trained (the tensors
# show which modules it changes). Any other setting is refused unless it is off.
READ_SETTINGS = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "init_lora_weights",
}  # fmt: skip
HARMLESS_SETTINGS = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Settings of other trainers, without effect on the result.
_SETTINGS_OF_TRAINERS = {"use_gradient_checkpointing", "unsloth_fixed", "random_state", "unsloth_version"}
# Other initializations (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) first subtract something from the pretrained weights.
_INITIALIZATIONS = ("none", "true", "false", "gaussian", "orthogonal", "eva", "mica")

_REMEDY = "save the merged model with merge_and_unload() and give that folder"
_PREFIX = "base_model.model."
_HALF = re.compile(r"(.+)\.lora_(?:([AB])(?:\.default)?\.weight|embedding_([AB])(?:\.default)?)")
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_WITH_VOCABULARY_ROWS = (*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS, *OUTPUT_BIASES)
_COMPARED_AT_ONCE = 1 << 20  # values


class LowRank(NamedTuple):
    """A change Δ = scaling · up @ down of a tensor of shape [rows, columns].

    `down` is float32 [rank, columns], `up` float32 [rows, rank], both contiguous.
    """

    down: np.ndarray
    up: np.ndarray
    scaling: float


@exact_with_arrays
def add_low_rank(values, change, start):
    """Add the stretch start … start + size − 1 of a flattened Δ (a LowRank) to `values`, float32 [size], in place.

    Every position's sum runs over the rank in order, each product and each sum rounded to float32, and is scaled
    and added to the value last, so that no result depends on where stretches begin and end.
    """
    down, up, scaling = change
    rank, columns = down.shape
    room = np.empty(CHUNK, np.float32)
    done = 0
    while done < values.size:
        row, first = (start + done) // columns, (start + done) % columns
        size = min(CHUNK, columns - first, values.size - done)
        sums = room[:size]
        sums[:] = ZERO
        for k in range(rank):
            factor, direction = up[row, k], down[k, first : first + size]
            for j in range(size):
                sums[j] += factor * direction[j]
        for j in range(size):
            values[done + j] += np.float32(scaling) * sums[j]
        done += size


class LoraAdapter:
    """The changes that the adapter in `folder` makes to a pretrained model with these tensors (name: shape).

    `low_rank` has the changes to add, `replaced` the tensors that replace the pretrained model's (of the same shape,
    except that vocabulary matrices may have other rows), both by the pretrained model's names. A tensor in both is the
    replacement plus the change. `files` are the files of the adapter, `made_for` the base that its config names ("" if
    it names none).

    Raises UserError, naming folder, setting or tensor, for anything that cannot be applied exactly.
    """

    def __init__(self, folder: Path, pretrained_names_and_shapes: Mapping[str, tuple[int, ...]]):
        self.folder = folder
        self._shapes = pretrained_names_and_shapes
        self._shares_embeddings = not any(name.endswith(OUTPUT_EMBEDDINGS) for name in self._shapes)
        self._config = read_json_object(folder / ADAPTER_CONFIG_FILE, "give a complete PEFT adapter folder")
        made_for = self._config.get("base_model_name_or_path")
        self.made_for = made_for if isinstance(made_for, str) else ""
        self._check_settings()
        self._check_no_whole_model()
        self.files = adapter_files(folder)
        weights = self.files[-1]
        self.replaced: dict[str, StoredTensor] = {}
        self._modules: dict[str, str] = {}  # the adapter's own names, which patterns refer to, by the changed tensor
        halves: dict[str, dict[str, np.ndarray]] = {}
        stored = read_weight_file(weights)
        if not stored:
            raise UserError(f"{weights}: holds no tensors; download it again")
        for name, tensor in stored.items():
            if tensor.dtype not in FLOATING_CODES:
                raise self._error(f"tensor {name} has dtype {tensor.dtype}, which cannot be merged")
            half = _HALF.fullmatch(name.removeprefix(_PREFIX))
            if half:
                self._add_half(name, half, tensor, halves)
            else:
                self._add_replaced(name, tensor)
        self.low_rank = {target: self._low_rank(target, own) for target, own in halves.items()}
        if self._shares_embeddings:
            self._check_shared_embeddings()

    def read_replaced(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values start … stop − 1 of the flattened tensor replaced[name], as float32. Safe from several threads.

        Raises UserError, naming file and tensor, if one is NaN or infinite, or the file has become shorter.
        """
        return self._read(self.replaced[name], name, start, stop)

    def _read(self, stored: StoredTensor, name: str, start: int, stop: int) -> np.ndarray:
        raw = np.empty((stop - start) * stored.item_size, np.uint8)
        with open(stored.file, "rb", buffering=0) as file:
            read_stored(stored, name, file.fileno(), raw, start, stop)
        return to_float32(raw, stored, name)

    def _error(self, why: str) -> UserError:
        return UserError(f"{self.folder}: {why}; {_REMEDY}")

    def _check_settings(self) -> None:
        config = self._config
        if config.get("peft_type") != "LORA":
            raise self._error(f"peft_type is {config.get('peft_type')}, and only LORA can be applied")
        for key, value in config.items():
            is_known = key in READ_SETTINGS | HARMLESS_SETTINGS | _SETTINGS_OF_TRAINERS
            if not is_known and value not in (None, False, [], {}):
                raise self._error(f"its setting {key} is not supported")
        if str(config.get("init_lora_weights")).lower() not in _INITIALIZATIONS:
            raise self._error(f"init_lora_weights is {config['init_lora_weights']}, which changes pretrained weights")
        for key, pattern_key in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            patterns = config.get(pattern_key) or {}
            for value in (config.get(key), *(patterns.values() if isinstance(patterns, dict) else [patterns])):
                if type(value) not in (int, float) or not math.isfinite(value) or (key == "r" and value < 1):
                    raise self._error(
                        f"{key} or {pattern_key} in {ADAPTER_CONFIG_FILE} has {value}, which makes no sense"
                    )

    def _check_no_whole_model(self) -> None:
        for name in (SINGLE_FILE, INDEX_FILE, PICKLED_FILE, PICKLED_INDEX_FILE):
            if (self.folder / name).exists():
                raise UserError(
                    f"{self.folder}: holds both an adapter ({ADAPTER_CONFIG_FILE}) and a whole model ({name}); "
                    "move one of them to a separate folder"
                )

    def _add_half(
        self, name: str, half: re.Match[str], tensor: StoredTensor, halves: dict[str, dict[str, np.ndarray]]
    ) -> None:
        module, side, embedding_side = half.groups()
        target, key = self._pretrained_name(f"{module}.weight"), side or f"embedding {embedding_side}"
        if target not in self._shapes:
            raise self._no_target(name, target)
        self._modules[target] = module
        if key in halves.setdefault(target, {}):
            raise self._error(f"has tensor {name} under two names")
        if len(tensor.shape) != 2 or tensor.numel == 0:
            raise self._error(f"tensor {name} has shape {list(tensor.shape)}, which is not a low-rank matrix")
        halves[target][key] = self._read(tensor, name, 0, tensor.numel).reshape(tensor.shape)

    def _add_replaced(self, name: str, tensor: StoredTensor) -> None:
        own_name = name.removeprefix(_PREFIX)
        target = own_name if own_name in self._shapes else self._pretrained_name(_WRAPPERS.sub("", own_name))
        if ".original_module." in own_name and target not in self._shapes:
            return  # the pretrained values of a module that has a trained copy
        if not (self._shares_embeddings and target.endswith(OUTPUT_EMBEDDINGS)):
            if target not in self._shapes:
                raise self._no_target(name, target)
            expected = self._shapes[target]
            first = 1 if target.endswith(_WITH_VOCABULARY_ROWS) else 0
            if len(tensor.shape) != len(expected) or tensor.shape[first:] != expected[first:]:
                raise self._error(
                    f"tensor {name} is {list(tensor.shape)}, but the pretrained model has {list(expected)}"
                )
        if not self._equals(tensor, self.replaced.setdefault(target, tensor), target):
            raise self._error(f"has tensor {name} under two names, and with different values")

    def _pretrained_name(self, name: str) -> str:
        """The pretrained model's name of a tensor, which may lack the body's name (as GPT-2 on the hub) or have it."""
        bodies = ("model", "transformer", "gpt_neox")
        names = [name, name.partition(".")[2], *(f"{body}.{name}" for body in bodies)]
        return next((known for known in names if known in self._shapes), name)

    def _no_target(self, name: str, target: str) -> UserError:
        if self._shares_embeddings and target.endswith(OUTPUT_EMBEDDINGS):
            return self._error(f"tensor {name} belongs to output embeddings, which the pretrained model has tied")
        return self._error(f"tensor {name} belongs to {target}, which the pretrained model does not have")

    def _low_rank(self, target: str, halves: Mapping[str, np.ndarray]) -> LowRank:
        """The change of a tensor, in the orientation in which the tensor is stored."""
        is_embedding = "embedding A" in halves
        if set(halves) != ({"embedding A", "embedding B"} if is_embedding else {"A", "B"}):
            raise self._error(f"lacks lora_A or lora_B for {target}")
        a, b = (halves[key] for key in sorted(halves))
        shape = self.replaced[target].shape if target in self.replaced else self._shapes[target]
        is_transposed = is_embedding or (len(shape) == 2 and self._is_stored_transposed(target))
        changed = (a.shape[1], b.shape[0]) if is_transposed else (b.shape[0], a.shape[1])
        if a.shape[0] != b.shape[1] or changed != shape:
            raise self._error(
                f"the low-rank change of {target}, {list(b.shape)} times {list(a.shape)}, does not fit {list(shape)}"
            )
        module = self._modules[target]
        rank, alpha = self._setting("r", "rank_pattern", module), self._setting("lora_alpha", "alpha_pattern", module)
        if rank != a.shape[0]:
            raise self._error(
                f"the low-rank change of {target} has rank {a.shape[0]}, but {rank} in {ADAPTER_CONFIG_FILE}"
            )
        scaling = alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        if is_transposed:
            return LowRank(np.ascontiguousarray(b.T), np.ascontiguousarray(a.T), scaling)
        return LowRank(a, b, scaling)

    def _setting(self, key: str, pattern_key: str, module: str) -> Any:
        """A module's value: from the first pattern that matches its whole name or the end of it."""
        for pattern, value in (self._config.get(pattern_key) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error:
                raise self._error(f"{pattern_key} has {pattern!r}, which is not a regular expression") from None
        return self._config[key]

    def _is_stored_transposed(self, target: str) -> bool:
        """Whether a matrix is stored as [in, out], as in GPT-2. PEFT looks at the module's class and ignores
        fan_in_fan_out in the config. Here the length of the bias shows it, which such modules always have."""
        rows, columns = self._shapes[target]
        if rows != columns:
            return self._has_bias_by_column(target)
        if any(self._has_bias_by_column(name) for name in self._shapes):
            return f"{target.removesuffix('weight')}bias" in self._shapes
        if self._config.get("fan_in_fan_out"):
            raise self._error(f"fan_in_fan_out is set, but nothing shows whether {target} is stored transposed")
        return False

    def _has_bias_by_column(self, target: str) -> bool:
        shape, bias = self._shapes[target], self._shapes.get(f"{target.removesuffix('weight')}bias")
        return target.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1] and bias == shape[1:]

    def _check_shared_embeddings(self) -> None:
        """Refuse a change of one of two tied embeddings, which would change both. The same whole tensor for both, which
        PEFT saves when the vocabulary grew, is accepted."""
        outputs = {name: self.replaced.pop(name) for name in [*self.replaced] if name.endswith(OUTPUT_EMBEDDINGS)}
        inputs = [name for name in {*self.replaced, *self.low_rank} if name.endswith(INPUT_EMBEDDINGS)]
        for name in inputs:
            if name in self.low_rank or not outputs:
                raise self._error(f"changes {name} alone, which the pretrained model ties to its output embeddings")
        for name, output in outputs.items():
            if not any(self._equals(output, self.replaced[shared], name) for shared in inputs):
                raise self._no_target(name, name)

    def _equals(self, one: StoredTensor, other: StoredTensor, name: str) -> bool:
        """Whether two stored tensors hold the same values."""
        if one is other:
            return True
        if one.shape != other.shape:
            return False
        for start in range(0, one.numel, _COMPARED_AT_ONCE):
            stop = min(start + _COMPARED_AT_ONCE, one.numel)
            if not np.array_equal(*(self._read(stored, name, start, stop) for stored in (one, other))):
                return False
        return True


class AdaptedFolder:
    """A `CheckpointFolder` of an adapter's whole fine-tune: tensors that the adapter changes are computed in float32
    from the pretrained model's, stretch by stretch; the others are the pretrained model's.

    Raises UserError for an adapter that does not fit the pretrained model.
    """

    is_adapter = True

    def __init__(self, folder: Path, pretrained: CheckpointFolder):
        self.folder = folder
        self.has_values = pretrained.has_values and not holds_headers_only(folder)
        self.config = pretrained.config
        self._pretrained = pretrained
        shapes = {without_wrappers(name): stored.shape for name, stored in pretrained.tensors.items()}
        self._adapter = LoraAdapter(folder, shapes)
        self.made_for = self._adapter.made_for
        self.files = self._adapter.files
        self.tensors = dict(pretrained.tensors)
        for name, stored in pretrained.tensors.items():
            changed = without_wrappers(name)
            replacement = self._adapter.replaced.get(changed)
            if replacement is not None or changed in self._adapter.low_rank:
                self.tensors[name] = StoredTensor(self.files[-1], "F32", (replacement or stored).shape)

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name` into `buffer` (uint8): as float32 where the
        adapter changes it, else as stored."""
        changed = without_wrappers(name)
        change = self._adapter.low_rank.get(changed)
        if changed in self._adapter.replaced:
            values = self._adapter.read_replaced(changed, start, stop)
        elif change is not None:
            values = read_float32(self._pretrained, name, start, stop)
        else:
            self._pretrained.read_into(buffer, name, start, stop)
            return
        if change is not None:
            add_low_rank(values, change, start)
        buffer.view(np.float32)[:] = values

    def origin(self, name: str) -> None:
        """No file holds the values of this fine-tune (`vocabulary_matrices.Origin`)."""

    def tokens(self) -> dict[str, int] | None:
        """The tokens of the vocabulary's rows; None without a tokenizer."""
        return read_tokens(self.folder)

    def files_of(self, exists: Callable[[Path], object]) -> Path:
        """The folder of a kind of file: the adapter's where it has one, else the pretrained model's."""
        return self.folder if exists(self.folder) else self._pretrained.folder

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Have the system start reading the pretrained values from the disk."""
        if without_wrappers(name) not in self._adapter.replaced:
            self._pretrained.read_ahead(name, start, stop)
