"""Recipes: merges written in mergekit's YAML, read and checked without any weights."""
