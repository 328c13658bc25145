"""Untrusted programs are kept from everything else, by each kind of guard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_llms.evaluators import guard
from inference_llms.evaluators.guard import EVALUATOR_LIMITS, PROGRAM_LIMITS, Limits, Places, run_guarded
from tests.inference_llms.support import ROOT
from utils.errors import UserError

KINDS = {"bubblewrap": guard._bubblewrap_words, "unshare": guard._unshare_words}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch) -> str:
    """Run a test with each kind of guard that the machine has."""
    make_words = KINDS[request.param]
    reason = guard._why_not(make_words)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    monkeypatch.setattr(guard, "_find_guard", lambda: make_words)
    return request.param


def run(program: str, seconds: float = 60, limits: Limits = PROGRAM_LIMITS, places: Places | None = None) -> str:
    return run_guarded([sys.executable, "-c", program], seconds, limits, places)


FORBIDDEN = {
    "the network": ("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)", "unreachable"),
    "writing at home": ("open({home!r} + '/.written', 'w')", "Read-only|No such file"),
    "reading at home": ("print(open({secret!r}).read())", "No such file"),
    "writing in the project": ("open({project!r} + '/.written', 'w')", "Read-only|No such file|Permission denied"),
    "sockets of services": ("import socket; socket.socket(socket.AF_UNIX).connect({socket!r})", "No such file"),
    "signals to the waiting process": ("import os; os.kill({parent}, 0)", "No such process|not permitted"),
    "files in its own folder beyond the disk": (
        "for i in range(9): open(f'/tmp/{{i}}', 'wb').write(bytes(200 << 20))",
        "No space left",
    ),
    "more memory": ("bytearray(4 << 30)", "MemoryError"),
    "one file without end": ("import sys\nwhile True: sys.stdout.write('x' * 10**6)", "File too large"),
    "processes without end": ("import os, time\nwhile True: os.fork() or time.sleep(9)", "unavailable"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_program_is_denied(what, kind, tmp_path, monkeypatch):
    home, socket_path = tmp_path / "home", tmp_path / "socket"
    home.mkdir()
    (home / "secret").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    listen = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(socket_path)!r}); input()"
    listener = subprocess.Popen([sys.executable, "-c", listen], stdin=subprocess.PIPE)
    names = {"home": str(home), "secret": str(home / "secret"), "project": str(ROOT), "socket": str(socket_path)}
    program, message = FORBIDDEN[what]
    try:
        with pytest.raises(UserError, match=message):
            run(program.format(parent=os.getpid(), **names))
    finally:
        listener.communicate(b"\n")
    assert not (ROOT / ".written").exists() and not (home / ".written").exists()
    assert not (home / ".written").exists() and not (ROOT / ".written").exists()


def test_a_program_sees_only_its_own_processes_and_variables(kind, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    output = run(
        "import glob, os\nprint(dict(os.environ))\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
        " if os.access(path, os.R_OK): os.system('cat ' + path)\n"
        "print('processes', len(glob.glob('/proc/[0-9]*')))"
    )
    assert "secret" not in output and int(output.split()[-1]) <= 3


def test_a_program_writes_to_its_folder_and_its_output_is_returned(kind, tmp_path):
    program = "open('made', 'w').write('it'); open('/tmp/private', 'w').write('it'); print(6 * 7)"
    assert run(program, places=Places(scratch=tmp_path)) == "42\n"
    assert (tmp_path / "made").read_text() == "it" and not Path("/tmp/private").exists()


def test_long_output_does_not_fill_this_process(kind):
    output = run("import sys; sys.stdout.write('x' * (50 << 20)); sys.stdout.write('the end')")
    assert output.endswith("xthe end") and len(output) < 1 << 20


def test_processes_share_one_limit_on_memory(kind):
    limits = Limits(memory=1 << 30)
    program = (
        "import subprocess, sys, time\n"
        "words = [sys.executable, '-c', 'import time; held = b\"x\" * (400 << 20); time.sleep(30)']\n"
        "[one.wait() for one in [subprocess.Popen(words, start_new_session=True) for _ in range(3)]]"
    )
    with pytest.raises(UserError, match=r"its processes held .* GiB together \(the limit is 1\) and were ended"):
        run(program, limits=limits)
    forked = (
        "import os, time\nheld = b'x' * (400 << 20)\nchildren = [os.fork() for _ in range(2)]\ntime.sleep(2)\n"
        "print('whole', flush=True)\n[os.waitpid(child, 0) for child in children if child]"
    )
    assert run(forked, limits=limits).split() == ["whole"] * 4


def test_the_kernel_limits_the_number_of_processes(kind):
    many = "import threading, time\nfor n in range(99):\n threading.Thread(target=time.sleep, args=(0.4,)).start()"
    with pytest.raises(UserError, match="can't start new thread"):
        run(many)
    run(many, limits=EVALUATOR_LIMITS)


def test_an_evaluator_may_map_more_memory(kind):
    program = "import mmap; mmap.mmap(-1, 5 << 30)"
    with pytest.raises(UserError, match="Cannot allocate memory"):
        run(program)
    run(program, limits=EVALUATOR_LIMITS)


def wait_for(condition, seconds: float = 20) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.05)
    return condition()


def test_a_program_that_takes_too_long_ends_with_all_its_children(kind, tmp_path):
    child = f"import pathlib, time; time.sleep(2); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(UserError, match="longer than 1 s"):
        run(program, seconds=1, places=Places(scratch=tmp_path))
    time.sleep(1.5)
    assert not (tmp_path / "alive").exists()


def test_a_program_dies_with_the_process_that_waits_for_it(kind, tmp_path):
    program = "import time\nwhile True:\n open('alive', 'w').close(); time.sleep(0.1)"
    waiting = (
        "import pathlib, sys; from inference_llms.evaluators import guard\n"
        "from inference_llms.evaluators.guard import Places, run_guarded\n"
        f"guard._find_guard = lambda: guard.{KINDS[kind].__name__}\n"
        f"run_guarded([sys.executable, '-c', {program!r}], 60, places=Places(scratch=pathlib.Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting], cwd=ROOT)
    alive = tmp_path / "alive"
    assert wait_for(alive.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


def test_a_machine_without_a_guard_refuses_programs(monkeypatch, tmp_path):
    guard._find_guard.cache_clear()
    for name in guard._TOOLS:
        (tmp_path / name).symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"bubblewrap: not installed; unshare: .*; install bubblewrap") as refusal:
        run("print('it ran')")
    assert "\n" not in str(refusal.value)
