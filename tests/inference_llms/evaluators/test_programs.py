"""Each program gets a separate verdict, independent of the other programs."""

import pytest

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
