"""Adversarial attacks on the prompts of classification tasks."""
