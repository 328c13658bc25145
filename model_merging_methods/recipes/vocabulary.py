"""The vocabulary that a recipe's `tokenizer` asks for: its tokens, and the matrices with their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.rebuilt_matrix import RebuiltMatrix, StoredRow
from model_merging_methods.checkpoints.rebuilt_vocabulary import TokenRow, merged_tokens, rows_by_model
from model_merging_methods.checkpoints.tokenizer_reading import backend_json, read_tokens
from model_merging_methods.checkpoints.vocabulary import Vocabulary, added_token
from model_merging_methods.checkpoints.vocabulary_matrices import (
    INPUT_EMBEDDINGS,
    Folder,
    Origin,
    is_vocabulary_matrix,
)
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.references import ModelReference
from model_merging_methods.recipes.tokenizer import TokenSource
from utils.errors import UserError

Folders = Mapping[ModelReference, Folder]


@dataclass(frozen=True)
class BuiltVocabulary:
    """The merged model's tokens, the model whose tokenizer has them, and tokens (with their entries in a
    `tokenizer.json`) that this one lacks. `rows` are, for each model, the stored rows that its rows are the mean of."""

    tokens: Mapping[str, int]
    tokenizer_of: ModelReference
    added: Mapping[str, Mapping[str, Any]]
    padding: int
    models: Sequence[ModelReference]
    rows: Sequence[Sequence[Sequence[StoredRow]]]

    def matrix(self, folders: Folders, place: Origin) -> RebuiltMatrix | None:
        """A model's matrix with the rows of this vocabulary; None if it has them already."""
        number = next(i for i, model in enumerate(self.models) if folders[model] is place.folder)
        rows = self.rows[number]
        is_same = all(row == ((number, i),) for i, row in enumerate(map(tuple, rows))) and not self.padding
        if is_same and len(rows) == place.folder.tensors[place.name].shape[0]:
            return None
        matrices = [(folders[model], _matrix_like(folders[model], place.name)) for model in self.models]
        matrices[number] = place
        return RebuiltMatrix(matrices, rows, self.padding)


def build_vocabulary(recipe: Recipe, folders: Folders) -> BuiltVocabulary | None:
    """The vocabulary of a recipe with the key `tokenizer` or `tokenizer_source`, else None."""
    settings = recipe.tokenizer
    if settings is None:
        return None
    inputs = list(dict.fromkeys(source.model for part in recipe.slices for source in part.sources))
    if recipe.base is not None and recipe.base not in inputs:
        inputs = [recipe.base, *inputs]
    models = [*inputs, *(model for model in recipe.models if model not in inputs)]
    vocabularies = [_vocabulary_of(recipe, model, folders[model]) for model in models]
    by_model = {model: own.tokens for model, own in zip(models, vocabularies, strict=True)}
    first = recipe.base or inputs[0]
    source = settings.source if isinstance(settings.source, ModelReference) else first
    others = [by_model[model] for model in inputs] if settings.source == "union" else []
    tokens = merged_tokens(by_model[source], others)
    new = [token for token in settings.tokens if token not in tokens]
    tokens |= {token: max(tokens.values(), default=-1) + 1 + number for number, token in enumerate(new)}
    named = {
        token: _token_row(recipe, token, own, models, dict(zip(models, vocabularies, strict=True)))
        for token, own in settings.tokens.items()
        if own.kind != "default"
    }
    base = models.index(recipe.base) if recipe.base is not None else None
    rows = rows_by_model(tokens, vocabularies, len(inputs), base, named)
    return BuiltVocabulary(
        tokens=tokens,
        tokenizer_of=source,
        added=_added(tokens, by_model[source], [folders[model] for model in inputs]),
        padding=-len(rows[0]) % (settings.pad_to_multiple_of or 1),
        models=models,
        rows=rows,
    )


def _vocabulary_of(recipe: Recipe, model: ModelReference, folder: Folder) -> Vocabulary:
    tokens = read_tokens(tokenizer_folder(folder))
    if tokens is None:
        raise UserError(f"{_place(recipe)}: tokenizer: {model} has none; add its tokenizer files to {folder.folder}")
    return Vocabulary(tokens, number_of_rows(folder))


def _place(recipe: Recipe) -> str:
    return recipe.place_of("tokenizer", "tokenizer_source")


def tokenizer_folder(folder: Folder) -> Path:
    """Where a model's tokenizer is: an adapter's own, else that of the model that it changes."""
    return folder.files_of(lambda path: read_tokens(path) is not None)


def number_of_rows(folder: Folder) -> int:
    return next((stored.shape[0] for name, stored in folder.tensors.items() if is_vocabulary_matrix(name)), 0)


def _token_row(
    recipe: Recipe,
    token: str,
    source: TokenSource,
    models: Sequence[ModelReference],
    vocabularies: Mapping[ModelReference, Vocabulary],
) -> TokenRow:
    if source.model is None:
        return TokenRow(None, force=source.force)
    tokens, rows = vocabularies[source.model].named_rows(), vocabularies[source.model].rows
    wanted = token if source.token is None else source.token
    row = source.token_id if source.token_id is not None else tokens.get(wanted)
    if source.token_id is not None and not 0 <= row < rows:
        raise UserError(
            f"{_place(recipe)}: token_id: {source.model} has no row {row}; give a number from 0 to {rows - 1}"
        )
    if row is None:
        raise UserError(f"{_place(recipe)}: tokens: {source.model} has no token {wanted}; name one of its tokens")
    return TokenRow(models.index(source.model), row, source.force)


def _added(tokens: Mapping[str, int], known: Mapping[str, int], folders: Sequence[Folder]) -> dict[str, Any]:
    """The tokens that a tokenizer lacks, as entries of a `tokenizer.json`: another model's, if it has one."""
    new = [token for token in tokens if token not in known]
    if not new:
        return {}
    entries: dict[str, Any] = {}
    for folder in folders:
        for entry in backend_json(tokenizer_folder(folder))["added_tokens"]:
            entries.setdefault(entry["content"], {key: value for key, value in entry.items() if key != "id"})
    return {token: entries.get(token) or added_token(token, special=False) for token in new}


def _matrix_like(folder: Folder, name: str) -> str:
    """A model's matrix for another model's of this name: its input embeddings if it has no such head."""
    if name in folder.tensors:
        return name
    matrices = [own for own in folder.tensors if is_vocabulary_matrix(own)]
    ending = name.rsplit(".", 2)[-2:]
    alike = [own for own in matrices if own.rsplit(".", 2)[-2:] == ending]
    return (alike or [own for own in matrices if own.endswith(INPUT_EMBEDDINGS)] or matrices)[0]
