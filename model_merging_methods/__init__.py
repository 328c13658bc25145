"""Weights in, weights out: merging fine-tuned checkpoints of one backbone, a block at a time.

This package knows nothing about prompts, tasks or engines.
"""

from __future__ import annotations

# Nothing is imported here: commands of this package handle Ctrl-C before their imports.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def merge_models(
    recipe: str | Path | Mapping[str, object],
    out_dir: str | Path,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> None:
    """Merge what a recipe says into a model folder. docs/recipes.md describes recipes.

    recipe: a YAML file, or its content as plain values and paths. seed: replaces the recipe's own. device: cpu, cuda or
    auto.

    Raises UserError, naming file, line and key, or all keys that lead to a plain value, for a recipe or models that
    cannot be merged, and for a folder that holds anything but this merge (unless `overwrite`).
    """
    from collections.abc import Mapping

    from model_merging_methods.merge_folders import MergeWork
    from model_merging_methods.recipes.merging import merge_recipe, read_recipe
    from utils.command_line import expanded_path
    from utils.errors import UserError

    if seed is not None and not (isinstance(seed, int) and seed >= 0):
        raise UserError(f"seed {seed}: give a whole number from 0 on")
    source = dict(recipe) if isinstance(recipe, Mapping) else expanded_path(recipe)
    work = MergeWork(device=device)
    merge_recipe(read_recipe(source), expanded_path(out_dir), seed=seed, overwrite=overwrite, work=work)
