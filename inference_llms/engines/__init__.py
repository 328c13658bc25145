"""Engines, which complete prompts."""
