"""Prompts in, completions and scores out: tasks, engines and evaluators. Independent of merging."""
