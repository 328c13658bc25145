"""Marks of the tests that need vLLM."""

import importlib.util
import os

import pytest
import torch

from utils.machine import available_cores

REQUIRED = os.environ.get("REQUIRE_VLLM") == "1"
vllm_installed = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and not REQUIRED,
    reason="vLLM is not installed; `bash scripts/test.sh --vllm` installs it and runs these",
)
two_workers = pytest.mark.skipif(
    (torch.cuda.device_count() or len(available_cores())) < 2, reason="fewer than two GPUs or cores here"
)
