"""Benchmarks and their tables."""
