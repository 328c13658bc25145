"""Processor cores of the machine."""

import os


def available_cores() -> list[int]:
    """The processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
