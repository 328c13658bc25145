"""MergeBench: merge the specialists of a base, and compare the merges with them in five domains."""
