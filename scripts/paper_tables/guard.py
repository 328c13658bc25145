"""A process for programs that nobody has read: without network, with limits on memory, files and time."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

MEMORY_BYTES = 4 << 30
FILE_BYTES = 1 << 30
# No keys, no tokens: programs see the environment.
_KEPT_VARIABLES = ("PATH", "LANG", "HOME", "HF_HOME")


def guarded_words(words: Sequence[str]) -> list[str]:
    """The command that runs `words` in network and process namespaces of its own, under limits on memory and files.

    Raises UserError where the machine does not allow that."""
    for tool in ("unshare", "prlimit"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} (of util-linux) is not here, so programs cannot be kept from the network")
    guard = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    tried = subprocess.run([*guard, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise UserError(f"this machine does not let a process be cut off from the network ({tried.stderr.strip()})")
    return [*guard, "prlimit", f"--as={MEMORY_BYTES}", f"--fsize={FILE_BYTES}", "--core=0", *words]


def run_guarded(words: Sequence[str], seconds: float, folder: Path | None = None) -> str:
    """Run `words` so, for `seconds` at most, in `folder`; returns what it printed.

    Raises UserError where it fails or takes longer; nothing of it runs on then."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    process = subprocess.Popen(
        guarded_words(words),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    name = Path(words[0]).name if Path(words[0]).name != Path(sys.executable).name else Path(words[1]).name
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{name} took longer than {seconds:.0f} s and was ended") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()]
        raise UserError(f"{name} failed: {lines[-1] if lines else f'status {process.returncode}'}")
    return output
