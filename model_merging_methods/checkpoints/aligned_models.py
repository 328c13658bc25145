"""The models of a merge as one set of parameters of equal names and shapes, read by stretches."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder, StoredTensor, not_finite_error
from model_merging_methods.checkpoints.checkpoint_writer import TensorForm
from model_merging_methods.checkpoints.vocabulary import (
    MISSING_ROW,
    AlignedVocabulary,
    Vocabulary,
    align_vocabularies,
    read_tokens,
)
from model_merging_methods.kernels.block_kernels import all_finite, decode
from model_merging_methods.kernels.stored_dtypes import F32, FLOATING_CODES, ITEM_SIZES
from utils.errors import UserError

# Endings of names, in one family or another, of the parameters that have a row for every token.
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
OUTPUT_EMBEDDINGS = ("lm_head.weight", "embed_out.weight")
OUTPUT_BIASES = ("lm_head.bias",)
_ROWS_AT_ONCE = 1024

BASE = 0  # the position of the pretrained model; the fine-tuned ones follow as 1 … K


class AlignedModels:
    """A pretrained model and K fine-tunes of it, with the vocabulary's rows aligned.

    `forms` gives each parameter's merged shape and the pretrained model's dtype, in the order of its files.

    Raises UserError, naming folder and tensor, for other architectures, tensors or shapes.
    """

    def __init__(self, pretrained: CheckpointFolder, finetuned: Sequence[CheckpointFolder]):
        self.models = [pretrained, *finetuned]
        for model in finetuned:
            _check_same_architecture(pretrained, model)
        self._vocabulary_names = [name for name in pretrained.tensors if _is_vocabulary(name)]
        self.vocabulary = self._align_vocabulary()
        self.forms = {name: self._merged_form(name) for name in pretrained.tensors}
        self._mean_rows: dict[tuple[int, str], np.ndarray] = {}

    @property
    def largest_item(self) -> int:
        """The most bytes that `read_into` gives for a value."""
        sizes = {ITEM_SIZES[stored.dtype] for model in self.models for stored in model.tensors.values()}
        return max(sizes | {ITEM_SIZES["F32"]})

    def read_into(self, buffer: np.ndarray, model: int, name: str, start: int, stop: int) -> int:
        """Put values start … stop − 1 of the flattened floating-point parameter `name`, of one model, at the
        beginning of `buffer` (uint8, with `largest_item` bytes a value). Returns the code of their dtype."""
        if self.has_other_rows(model, name):
            buffer.view(np.float32)[: stop - start] = self._read_rows(model, name, start, stop)
            return F32
        stored = self.stored_tensor(model, name)
        source, stored_name = self._stored(model, name)
        source.read_into(buffer[: (stop - start) * stored.item_size], stored_name, start, stop)
        return FLOATING_CODES[stored.dtype]

    def read_float32(self, model: int, name: str, start: int, stop: int) -> np.ndarray:
        """The same values as float32. Raises UserError, naming file and tensor, where one is NaN or infinite."""
        if self.has_other_rows(model, name):
            return self._read_rows(model, name, start, stop)
        return _read_float32(*self._stored(model, name), start, stop)

    def read_ahead(self, model: int, name: str, start: int, stop: int) -> None:
        """Ask the system to bring these values from the disk, without waiting for them."""
        if not self.has_other_rows(model, name):
            source, stored_name = self._stored(model, name)
            source.read_ahead(stored_name, start, stop)

    def has_other_rows(self, model: int, name: str) -> bool:
        """Whether a model's rows of this parameter are not the merged ones in the same order."""
        return name in self._vocabulary_names and self.vocabulary.row_maps[model] is not None

    def stored_tensor(self, model: int, name: str) -> StoredTensor:
        """Where and how a model stores a parameter."""
        source, stored_name = self._stored(model, name)
        return source.tensors[stored_name]

    def _stored(self, model: int, name: str) -> tuple[CheckpointFolder, str]:
        return self.models[model], _stored_name(self.models[model], name)

    def _read_rows(self, model: int, name: str, start: int, stop: int) -> np.ndarray:
        source, stored_name = self._stored(model, name)
        width = self.forms[name].numel // self.forms[name].shape[0]
        first, last = start // width, -(-stop // width)
        pieces = [
            np.tile(self._mean_row(model, name), count)
            if row == MISSING_ROW
            else _read_float32(source, stored_name, row * width, (row + count) * width)
            for row, count in _runs(self.vocabulary.row_maps[model][first:last])
        ]
        return np.concatenate(pieces)[start - first * width : stop - first * width]

    def _mean_row(self, model: int, name: str) -> np.ndarray:
        """The mean of a model's own rows, summed in double precision so that it is exact to float32."""
        if (model, name) not in self._mean_rows:
            self._mean_rows[model, name] = self._compute_mean_row(model, name)
        return self._mean_rows[model, name]

    def _compute_mean_row(self, model: int, name: str) -> np.ndarray:
        source, stored_name = self._stored(model, name)
        rows, *rest = source.tensors[stored_name].shape
        width = math.prod(rest)
        total = np.zeros(width, np.float64)
        for first in range(0, rows, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, rows)
            block = _read_float32(source, stored_name, first * width, last * width)
            total += block.reshape(-1, width).sum(axis=0, dtype=np.float64)
        return (total / rows).astype(np.float32)

    def _align_vocabulary(self) -> AlignedVocabulary:
        if not self._vocabulary_names:
            return AlignedVocabulary({}, 0, (None,) * len(self.models))
        rows = [_vocabulary_rows(model) for model in self.models]
        tokens_of = [read_tokens(model.folder) for model in self.models]
        # A base without a tokenizer names its rows as the first model does that has one.
        base_tokens = next((tokens for tokens in tokens_of if tokens is not None), {})
        vocabularies = []
        for model, tokens, own_rows in zip(self.models, tokens_of, rows, strict=True):
            if tokens is None and model is not self.models[BASE] and own_rows != rows[BASE]:
                raise UserError(
                    f"{model.folder}: has {own_rows} vocabulary rows where the pretrained model has {rows[BASE]}, "
                    "and no tokenizer that tells which; add its tokenizer files"
                )
            vocabularies.append(Vocabulary(base_tokens if tokens is None else tokens, own_rows))
        return align_vocabularies(vocabularies[BASE], vocabularies[1:])

    def _merged_form(self, name: str) -> TensorForm:
        stored = self.models[BASE].tensors[name]
        shape = stored.shape
        if name in self._vocabulary_names:
            shape = (self.vocabulary.rows, *shape[1:])
        for model in self.models[1:]:
            own = model.tensors[_stored_name(model, name)].shape
            same = own[1:] == shape[1:] if name in self._vocabulary_names else own == shape
            if not same:
                raise UserError(
                    f"tensor {name} is {_dimensions(own)} in {model.folder} but {_dimensions(stored.shape)} in "
                    f"{self.models[BASE].folder}; only fine-tunes of the pretrained model can be merged"
                )
        return TensorForm(stored.dtype, shape)


def _read_float32(source: CheckpointFolder, name: str, start: int, stop: int) -> np.ndarray:
    stored = source.tensors[name]
    buffer = np.empty((stop - start) * stored.item_size, np.uint8)
    source.read_into(buffer, name, start, stop)
    values = np.empty(stop - start, np.float32)
    decode(buffer, FLOATING_CODES[stored.dtype], 0, values)
    if not all_finite(values):
        raise not_finite_error(stored.file, name)
    return values


def tokenizer_folder(model: CheckpointFolder, pretrained: CheckpointFolder) -> Path:
    """Where the tokenizer for a fine-tune's tasks lies: in its own folder, else in the pretrained model's."""
    return pretrained.folder if read_tokens(model.folder) is None else model.folder


def _check_same_architecture(pretrained: CheckpointFolder, model: CheckpointFolder) -> None:
    for key in ("model_type", "architectures"):
        if pretrained.config.get(key) != model.config.get(key):
            raise UserError(
                f"{model.folder / 'config.json'}: {key} is {model.config.get(key)} where the pretrained model "
                f"{pretrained.folder} has {pretrained.config.get(key)}; merge fine-tunes of one backbone"
            )
    for name in pretrained.tensors:
        if _stored_name(model, name) not in model.tensors:
            raise UserError(f"{model.folder}: lacks tensor {name} that {pretrained.folder} has; complete it")
    for name in model.tensors:
        tied_output = name.endswith(OUTPUT_EMBEDDINGS) and _ties_embeddings(model)
        if name not in pretrained.tensors and not tied_output:
            raise UserError(f"{pretrained.folder}: lacks tensor {name} that {model.folder} has; complete it")


def _stored_name(model: CheckpointFolder, name: str) -> str:
    """The name under which a model stores a parameter: tied output embeddings are the input embeddings."""
    if name.endswith(OUTPUT_EMBEDDINGS) and name not in model.tensors and _ties_embeddings(model):
        return next((stored for stored in model.tensors if stored.endswith(INPUT_EMBEDDINGS)), name)
    return name


def _ties_embeddings(model: CheckpointFolder) -> bool:
    """Whether a model without output embeddings of its own may be one that shares them: configs leave the
    setting out where it is the family's default."""
    inner = model.config.get("text_config")
    inherited = inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
    return model.config.get("tie_word_embeddings", inherited) is not False


def _is_vocabulary(name: str) -> bool:
    return name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS, *OUTPUT_BIASES))


def _vocabulary_rows(model: CheckpointFolder) -> int:
    matrices = {name: stored.shape for name, stored in model.tensors.items() if _is_vocabulary(name)}
    for name, shape in matrices.items():
        if len(shape) != (1 if name.endswith(OUTPUT_BIASES) else 2) or shape[0] == 0:
            raise UserError(f"{model.folder}: tensor {name} is {_dimensions(shape)}, which is no vocabulary matrix")
    rows = {name: shape[0] for name, shape in matrices.items()}
    if len(set(rows.values())) > 1:
        raise UserError(f"{model.folder}: its vocabulary matrices have different numbers of rows ({rows})")
    return next(iter(rows.values()))


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive rows as (first row, count); repeated MISSING_ROW is one run too."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs:
            first, count = runs[-1]
            if row == (MISSING_ROW if first == MISSING_ROW else first + count):
                runs[-1] = (first, count + 1)
                continue
        runs.append((row, 1))
    return runs


def _dimensions(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
