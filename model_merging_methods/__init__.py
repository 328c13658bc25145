"""Weights in, weights out: merging fine-tuned checkpoints of one backbone, a block at a time.

This package does not know prompts, tasks or engines.
"""
