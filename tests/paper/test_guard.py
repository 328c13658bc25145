"""What programs that are being judged cannot do."""

import sys
import time

import pytest

from scripts.paper_tables.guard import MEMORY_BYTES, guarded_words, run_guarded
from utils.errors import UserError


@pytest.fixture(autouse=True)
def allowed():
    try:
        guarded_words(["true"])
    except UserError as error:
        pytest.skip(str(error))


def run(program: str, seconds: float = 60) -> str:
    return run_guarded([sys.executable, "-c", program], seconds)


def test_a_program_runs_and_its_output_comes_back():
    assert run("print(6 * 7)") == "42\n"


def test_the_network_is_not_there():
    with pytest.raises(UserError, match="unreachable"):
        run("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)")


def test_memory_ends_at_the_limit():
    with pytest.raises(UserError, match="MemoryError"):
        run(f"bytearray({MEMORY_BYTES})")


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    witness = tmp_path / "alive"
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(witness)!r}).touch()"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(UserError, match="longer than 1 s"):
        run(program, seconds=1)
    time.sleep(3)
    assert not witness.exists()


def test_keys_in_the_environment_are_not_seen(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    assert "secret" not in run("import os; print(dict(os.environ))")
