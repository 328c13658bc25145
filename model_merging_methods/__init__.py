"""Weights in, weights out: merging fine-tuned checkpoints of one backbone, a block at a time.

This room knows nothing of prompts, tasks or engines.
"""
