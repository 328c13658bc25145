"""What programs that are being judged cannot do."""

import sys
import time

import pytest

from scripts import guard
from scripts.guard import MEMORY_BYTES, TORCH_MEMORY_BYTES, guarded_words, run_guarded
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


def test_output_without_end_does_not_fill_this_process():
    told = run("import sys; sys.stdout.write('x' * (50 << 20)); sys.stdout.write('the end')")
    assert told.endswith("xthe end") and len(told) < 1 << 20


def test_the_network_is_not_there():
    with pytest.raises(UserError, match="unreachable"):
        run("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)")


def test_memory_ends_at_the_limit():
    with pytest.raises(UserError, match="MemoryError"):
        run(f"bytearray({MEMORY_BYTES})")


CHILDREN = """
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", {program!r}], start_new_session=True) for _ in range({number})]
print([child.wait() for child in children])
"""


def test_memory_of_several_processes_ends_at_their_common_limit(monkeypatch):
    monkeypatch.setattr(guard, "TOTAL_MEMORY_BYTES", 1 << 30)
    program = CHILDREN.format(program="import time; held = b'x' * (400 << 20); time.sleep(30)", number=3)
    with pytest.raises(UserError, match=r"its processes held .* GiB together \(the limit is 1\) and were ended"):
        run(program)


def test_memory_that_processes_share_is_counted_once(monkeypatch):
    monkeypatch.setattr(guard, "TOTAL_MEMORY_BYTES", 1 << 30)
    forked = "import os, time; held = b'x' * (400 << 20); [os.fork() for _ in range(2)]; time.sleep(2); print('whole')"
    assert run(forked).split() == ["whole"] * 4


def test_processes_without_end_are_ended(monkeypatch):
    monkeypatch.setattr(guard, "PROCESSES", 20)
    with pytest.raises(UserError, match=r"started \d+ processes \(the limit is 20\) and was ended"):
        run(CHILDREN.format(program="import time; time.sleep(30)", number=30))
    assert run(CHILDREN.format(program="", number=10)) == f"{[0] * 10}\n"


def test_an_evaluator_that_maps_much_memory_can_be_given_it():
    program = "import mmap; mmap.mmap(-1, 5 << 30)"
    with pytest.raises(UserError, match="Cannot allocate memory"):
        run(program)
    run_guarded([sys.executable, "-c", program], 60, memory_bytes=TORCH_MEMORY_BYTES)


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
