"""The models of a merge as one set of parameters with equal names and shapes, read a stretch at a time."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder, read_bytes, read_float32
from model_merging_methods.checkpoints.checkpoint_writer import TensorForm
from model_merging_methods.checkpoints.tensor_names import match_names
from model_merging_methods.checkpoints.vocabulary import (
    MISSING_ROW,
    AlignedVocabulary,
    Vocabulary,
    align_vocabularies,
)
from model_merging_methods.checkpoints.vocabulary_matrices import (
    OUTPUT_BIASES,
    Folder,
    Origin,
    VocabularyMatrices,
    is_vocabulary,
    match_matrices,
)
from model_merging_methods.kernels.stored_dtypes import F32, FLOATING_CODES, LONG_NAMES, is_floating
from model_merging_methods.kernels.stored_values import encode
from utils.errors import UserError
from utils.findings import Findings
from utils.safetensors_files import ITEM_SIZES, StoredTensor

_ROWS_AT_ONCE = 1024

BASE = 0  # the position of the pretrained model; the fine-tuned ones follow as 1 … K


def align_models(
    models: Sequence[CheckpointFolder], excludes: Callable[[str], bool], findings: Findings
) -> "AlignedModels | None":
    """A pretrained model and its fine-tunes, in this order, as one set of parameters. Fine-tunes may lack parameters
    that are excluded. None, with the reasons among the findings, for models that do not fit together."""
    errors = len(findings.errors)
    names = match_names(models, excludes, findings)
    if len(findings.errors) == errors:
        matrices = match_matrices(models, names.stored, lambda name: excludes(name) or name in names.kept, findings)
    if len(findings.errors) == errors:
        stored = [own | own_matrices for own, own_matrices in zip(names.stored, matrices.stored, strict=True)]
        _check_forms(models, stored, names.kept, findings)
    if len(findings.errors) == errors:
        with findings.collect():
            return AlignedModels(models, stored, kept=names.kept, left_out=names.left_out, matrices=matrices)
    return None


class AlignedModels:
    """A pretrained model and K fine-tunes of it, with the vocabulary's rows aligned.

    `stored_names` maps, for each model, the merged names to its own. `forms` gives each parameter's merged shape and
    the pretrained model's dtype, in the order of its files. Parameters in `kept` stay as in the pretrained model, those
    in `same_as` repeat another one's matrix, and only fine-tunes have those in `left_out`. `must_untie`: the merged
    config must say that the output embeddings are a separate matrix.

    Raises UserError, naming folder and tensor, for vocabularies that cannot be aligned.
    """

    def __init__(self, models, stored_names, kept: set[str], left_out: set[str], matrices: VocabularyMatrices):
        self.models = list(models)
        self.kept = kept
        self.left_out = left_out
        self.same_as: Mapping[str, str] = matrices.same_as
        self.must_untie = matrices.must_untie
        self._stored_names = stored_names
        self._vocabulary_names = [name for name in stored_names[BASE] if is_vocabulary(name)]
        self.vocabulary = self._align_vocabulary()
        self.forms = {name: self._merged_form(name) for name in stored_names[BASE]}
        self._mean_rows: dict[tuple[int, str], np.ndarray] = {}

    def take_widest_dtypes(self) -> None:
        """Have each floating-point parameter saved in the widest dtype of its models, not in the pretrained one's."""
        for name, form in self.forms.items():
            dtypes = [self.stored_tensor(model, name).dtype for model in range(len(self.models))]
            if is_floating(form.dtype):
                self.forms[name] = TensorForm(_widest(dtypes), form.shape)

    @property
    def largest_item(self) -> int:
        """The most bytes per value that `read_into` writes."""
        sizes = {ITEM_SIZES[stored.dtype] for model in self.models for stored in model.tensors.values()}
        return max(sizes | {ITEM_SIZES["F32"]})

    def read_into(self, buffer: np.ndarray, model: int, name: str, start: int, stop: int) -> int:
        """Put values start … stop − 1 of a model's flattened floating-point parameter at the beginning of `buffer`
        (uint8, with `largest_item` bytes per value). Returns the code of their dtype."""
        if self.has_different_rows(model, name):
            buffer.view(np.float32)[: stop - start] = self.read_float32(model, name, start, stop)
            return F32
        stored = self.stored_tensor(model, name)
        source, stored_name = self._stored(model, name)
        source.read_into(buffer[: (stop - start) * stored.item_size], stored_name, start, stop)
        return FLOATING_CODES[stored.dtype]

    def read_float32(self, model: int, name: str, start: int, stop: int) -> np.ndarray:
        """The same values as float32. Raises UserError, naming file and tensor, if one is NaN or infinite."""
        if self.has_different_rows(model, name):
            return self._read_rows(model, name, start, stop, read_float32, self._mean_row(model, name))
        return read_float32(*self._stored(model, name), start, stop)

    def read_copy(self, name: str, start: int, stop: int) -> np.ndarray:
        """The same values of the pretrained model, as bytes of its dtype (uint8)."""
        if not self.has_different_rows(BASE, name):
            return read_bytes(*self._stored(BASE, name), start, stop)
        dtype = self.forms[name].dtype
        row = self._mean_row(BASE, name)
        encoded = np.empty(row.size * ITEM_SIZES[dtype], np.uint8)
        encode(row, FLOATING_CODES[dtype], 0, encoded)
        return self._read_rows(BASE, name, start, stop, read_bytes, encoded)

    def read_ahead(self, model: int, name: str, start: int, stop: int) -> None:
        """Have the system start reading these values from the disk."""
        if not self.has_different_rows(model, name):
            source, stored_name = self._stored(model, name)
            source.read_ahead(stored_name, start, stop)

    def has_different_rows(self, model: int, name: str) -> bool:
        """Whether a model's rows of this parameter differ from the merged rows or their order."""
        return name in self._vocabulary_names and self.vocabulary.row_maps[model] is not None

    def has(self, model: int, name: str) -> bool:
        """Whether a model has a parameter, under any name."""
        return name in self._stored_names[model]

    def stored_tensor(self, model: int, name: str) -> StoredTensor:
        """The tensor in which a model stores a parameter."""
        source, stored_name = self._stored(model, name)
        return source.tensors[stored_name]

    def item_size(self, model: int, name: str) -> int:
        """The bytes per value that `read_into` writes for a model's parameter."""
        return ITEM_SIZES["F32"] if self.has_different_rows(model, name) else self.stored_tensor(model, name).item_size

    def stored_name(self, model: int, name: str) -> str:
        """A model's own name of a parameter."""
        return self._stored_names[model][name]

    def origin(self, model: int, name: str) -> Origin | None:
        """The stored tensor that has exactly a model's values of a parameter; None if there is none."""
        if self.has_different_rows(model, name):
            return None
        source, stored_name = self._stored(model, name)
        return source.origin(stored_name)

    def matrix(self, name: str) -> str:
        """The name under which a parameter is merged and counted: another parameter's, if it repeats that one."""
        return self.same_as.get(name, name)

    def _stored(self, model: int, name: str) -> tuple[CheckpointFolder, str]:
        return self.models[model], self.stored_name(model, name)

    def _read_rows(
        self,
        model: int,
        name: str,
        start: int,
        stop: int,
        read: Callable[[Folder, str, int, int], np.ndarray],
        mean_row: np.ndarray,
    ) -> np.ndarray:
        """Values of a model whose rows are not the merged ones, from `read`; `mean_row` replaces missing rows."""
        width = self.forms[name].numel // self.forms[name].shape[0]
        first, last = start // width, -(-stop // width)
        size = mean_row.size // width  # of a value
        pieces = [
            np.tile(mean_row, count)
            if row == MISSING_ROW
            else read(*self._stored(model, name), row * width, (row + count) * width)
            for row, count in _runs(self.vocabulary.row_maps[model][first:last])
        ]
        return np.concatenate(pieces)[(start - first * width) * size : (stop - first * width) * size]

    def _mean_row(self, model: int, name: str) -> np.ndarray:
        """The mean of a model's own rows, summed in double precision so that it is exact to float32."""
        if (model, name) not in self._mean_rows:
            source, stored_name = self._stored(model, name)
            rows, *rest = source.tensors[stored_name].shape
            width = math.prod(rest)
            total = np.zeros(width, np.float64)
            for first in range(0, rows, _ROWS_AT_ONCE):
                last = min(first + _ROWS_AT_ONCE, rows)
                block = read_float32(source, stored_name, first * width, last * width)
                total += block.reshape(-1, width).sum(axis=0, dtype=np.float64)
            self._mean_rows[model, name] = (total / rows).astype(np.float32)
        return self._mean_rows[model, name]

    def _align_vocabulary(self) -> AlignedVocabulary:
        if not self._vocabulary_names:
            return AlignedVocabulary({}, 0, (None,) * len(self.models))
        rows = [self.vocabulary_rows(model) for model in range(len(self.models))]
        tokens_of = [model.tokens() for model in self.models]
        # For a base without a tokenizer, the first model with one names its rows.
        base_tokens = next((tokens for tokens in tokens_of if tokens is not None), {})
        vocabularies = []
        for model, tokens, own_rows in zip(self.models, tokens_of, rows, strict=True):
            if tokens is None and model is not self.models[BASE] and own_rows != rows[BASE]:
                raise UserError(
                    f"{model.folder}: has {own_rows} vocabulary rows, the pretrained model has {rows[BASE]}, "
                    "and no tokenizer to name them; add its tokenizer files"
                )
            vocabularies.append(Vocabulary(base_tokens if tokens is None else tokens, own_rows))
        return align_vocabularies(vocabularies[BASE], vocabularies[1:])

    def vocabulary_rows(self, model: int) -> int:
        """How many rows a model's matrices have; the pretrained model's number if it lacks them."""
        has = [name for name in self._vocabulary_names if name in self._stored_names[model]]
        rows = {name: self.stored_tensor(model, name).shape[0] for name in has}
        if len(set(rows.values())) > 1:
            folder = self.models[model].folder
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise UserError(
                f"{folder}: its vocabulary matrices have different numbers of rows ({counts}); save the model again, "
                "or download it again"
            )
        if rows:
            return next(iter(rows.values()))
        return 0 if model == BASE else self.vocabulary_rows(BASE)

    def _merged_form(self, name: str) -> TensorForm:
        stored = self.stored_tensor(BASE, name)
        is_aligned = name in self._vocabulary_names
        return TensorForm(stored.dtype, (self.vocabulary.rows, *stored.shape[1:]) if is_aligned else stored.shape)


def _check_forms(
    models: Sequence[CheckpointFolder], names: Sequence[Mapping[str, str]], kept: set[str], findings: Findings
) -> None:
    """Report tensors whose shapes or kinds of dtype differ from the pretrained model's."""
    base = models[BASE]
    for model, own in zip(models, names, strict=True):
        wrong = [
            name
            for name in own
            if is_vocabulary(name) and len(model.tensors[own[name]].shape) != (1 if name.endswith(OUTPUT_BIASES) else 2)
        ]
        if wrong:
            shape = _dimensions(model.tensors[own[wrong[0]]].shape)
            findings.error(
                f"{model.folder}: tensor {wrong[0]} is {shape}, which is not a vocabulary matrix; save the model again"
            )
            return
    for model, own in zip(models[1:], names[1:], strict=True):
        shapes, dtypes = [], []
        for name in names[BASE]:
            if name not in own or name in kept:
                continue
            first, stored = base.tensors[names[BASE][name]], model.tensors[own[name]]
            if not is_floating(first.dtype) and not is_floating(stored.dtype):
                continue  # not merged
            ignored = 1 if is_vocabulary(name) else 0  # rows are aligned by token
            if stored.shape[ignored:] != first.shape[ignored:]:
                shapes.append((name, _dimensions(stored.shape), _dimensions(first.shape)))
            elif is_floating(stored.dtype) != is_floating(first.dtype):
                dtypes.append((name, LONG_NAMES.get(stored.dtype), LONG_NAMES.get(first.dtype)))
        for differing, what in ((shapes, "shapes"), (dtypes, "dtypes")):
            if differing:
                name, own_form, base_form = differing[0]
                findings.error(
                    f"{model.folder}: tensor {name} is {own_form}, but {base.folder} has {base_form} "
                    f"({len(differing)} tensors have different {what}); merge fine-tunes of one pretrained model"
                )


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive rows as (first row, count). Repeated MISSING_ROW is one run too."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs:
            first, count = runs[-1]
            if row == (MISSING_ROW if first == MISSING_ROW else first + count):
                runs[-1] = (first, count + 1)
                continue
        runs.append((row, 1))
    return runs


def _widest(dtypes: Sequence[str]) -> str:
    """The dtype that holds all values: float32 for float16 beside bfloat16."""
    if "F64" in dtypes:
        return "F64"
    return dtypes[0] if len(set(dtypes)) == 1 else "F32"


def _dimensions(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
