"""Checkpoint folders: what they mean, how they are read and written."""
