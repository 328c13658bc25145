"""Benchmarks, and the tables that they wrote."""
