"""The opened inputs of a merge: the folders, and the parts of the merged model that are made from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.aligned_models import AlignedModels
from model_merging_methods.checkpoints.vocabulary_matrices import Folder
from model_merging_methods.engine import Merge
from model_merging_methods.merge_parameters import MergeParameters


@dataclass(frozen=True)
class Part:
    """Tensors of the merged model that are merged from the same number of models: these models with the pretrained one
    first, their roles, and the parameters of tensors that have options of their own."""

    models: AlignedModels
    roles: Sequence[str]
    own_parameters: Mapping[str, MergeParameters] = field(default_factory=dict)

    def merge(self, parameters: MergeParameters, **work: Any) -> Merge:
        return Merge(self.models, self.roles, parameters, own_parameters=self.own_parameters, **work)


@dataclass(frozen=True)
class OpenedModels:
    """The opened folders by role, the pretrained model's first, and the parts of the merged model: one, except in
    recipes whose slices have different numbers of models. `write_files` puts the files other than weights into a
    folder, with the tokenizer of a role."""

    folders: Mapping[str, Folder]
    parts: Sequence[Part]
    write_files: Callable[[str, Path], None]

    @property
    def have_values(self) -> bool:
        """Whether the values of all models are known."""
        return all(folder.has_values for folder in self.folders.values())

    @property
    def aligned(self) -> AlignedModels:
        """The models of the first part."""
        return self.parts[0].models
