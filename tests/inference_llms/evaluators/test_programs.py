"""Each program gets a separate verdict, independent of the other programs."""

import time
from itertools import pairwise

import pytest

from inference_llms.evaluators import programs
from inference_llms.evaluators.programs import programs_pass

pytestmark = pytest.mark.usefixtures("guarded")
TEST = (
    "import tempfile, threading\ndef check(f):\n    assert f(2) == 4\n"
    "    open(tempfile.mktemp(), 'w').write('it')\n    threading.Thread(target=print).start()"
)
PROBLEM = {"task_id": "double", "prompt": "", "entry_point": "f", "test": TEST}
LIBC = "import ctypes; libc = ctypes.CDLL(None)\n"
BAD = {
    "never ends": "while True: pass",
    "starts processes without end": f"{LIBC}while libc.fork() >= 0: pass\nlibc.sleep(30)",
    "kills all that it may": f"{LIBC}libc.kill(-1, 9)",
    "fills the disk": "import tempfile\nwhile True: open(tempfile.mktemp(), 'wb').write(bytes(100 << 20))",
    "leaves and says that it passed": f"{LIBC}libc.write(1, b'\"passed\"\\n', 9); libc._exit(0)",
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_program_fails_alone(what):
    pairs = [(PROBLEM, f"def f(x): return 2 * x + {wrong}") for wrong in (0, 0.0, 1)]
    pairs.insert(1, (PROBLEM, BAD[what]))
    assert programs_pass(pairs) == [True, False, True, False]


def test_problems_of_one_name_are_kept_apart():
    other = {**PROBLEM, "test": "def check(f):\n    assert f(2) == 5"}
    assert programs_pass([(PROBLEM, "def f(x): return 4"), (other, "def f(x): return 4")]) == [True, False]


# Takes 10 s where the evaluator runs several programs at once, as on a busy machine, and no time alone.
SLOW_BESIDE_OTHERS = """
def f(x):
    import glob, time
    commands = [open(path).read() for path in glob.glob("/proc/[0-9]*/cmdline")]
    time.sleep(10 * any("evaluate_functional_correctness" in command for command in commands))
    return 2 * x + {}
"""


def test_a_program_out_of_time_runs_again_alone(monkeypatch):
    calls, run = [], programs._result_alone

    def timed(*arguments):
        started = time.monotonic()
        result = run(*arguments)
        calls.append((started, time.monotonic()))
        return result

    monkeypatch.setattr(programs, "_result_alone", timed)
    slow = [(PROBLEM, SLOW_BESIDE_OTHERS.format(wrong)) for wrong in (0, 0.0, 1)]
    assert programs_pass(slow) == [True, True, False]
    assert len(calls) == 4  # with the check that the guard works
    assert all(end <= start for (_, end), (start, _) in pairwise(calls))
