"""Recipes as texts, and the names and sizes of small models for them."""

from pathlib import Path

from model_merging_methods.recipes.plan import TensorMerge, plan_tensors
from model_merging_methods.recipes.read_recipes import read_recipes
from model_merging_methods.recipes.reading import read_documents
from model_merging_methods.recipes.recipe import Recipe

LAYERS = 3
IN_A_LAYER = ("input_layernorm.weight", "mlp.down_proj.weight", "self_attn.o_proj.weight", "self_attn.q_proj.weight")


def llama_names(layers: int = LAYERS) -> list[str]:
    """Some of the tensor names of a Llama."""
    own = [f"model.layers.{i}.{name}" for i in range(layers) for name in IN_A_LAYER]
    return ["lm_head.weight", "model.embed_tokens.weight", *own, "model.norm.weight"]


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yml"
    file.write_text(text)
    return file


def read_one(folder: Path, text: str) -> Recipe:
    """The result's recipe of a text."""
    return read_recipes(read_documents(write(folder, text)))[-1]


def planned(recipe: Recipe, layers: int = LAYERS) -> dict[str, TensorMerge]:
    """The plan by tensor name, where every model is a small Llama."""
    names = dict.fromkeys(recipe.models, llama_names(layers))
    return {merge.name: merge for merge in plan_tensors(recipe, dict.fromkeys(recipe.models, layers), names)}
