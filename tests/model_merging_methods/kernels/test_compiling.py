"""Kernels that are kept on the disk are those of the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MASK = """
import numpy as np
from model_merging_methods.kernels.ranked_mask import mask_by_rank
values = np.ones((1, 64), np.float32)
mask_by_rank(values, np.uint64(7), 0, 0.5, 0.0, False)
print(values.tolist())
"""


def test_a_kernel_is_compiled_again_when_one_that_it_calls_has_changed(tmp_path):
    for package in ("model_merging_methods", "utils"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def masked() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", MASK]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    before = masked()
    called = tmp_path / "model_merging_methods" / "kernels" / "mask_kernels.py"
    changed = called.read_text(encoding="utf-8").replace(
        "_INCREMENT = np.uint64(0x9E37", "_INCREMENT = np.uint64(0x9E38"
    )
    assert masked() == before
    called.write_text(changed, encoding="utf-8")
    assert masked() != before
