"""Weights in, weights out: merging fine-tuned checkpoints of one backbone, a block at a time.

This package knows nothing about prompts, tasks or engines.
"""
