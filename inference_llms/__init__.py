"""Prompts in, completions out, and one file per task on top. Knows nothing of merging."""
