"""Errors of commands: one line each, and silence for a reader that has seen enough."""

import subprocess
import sys

from tests.inference_llms.support import ROOT
from utils.errors import READER_GONE

PRINTS = (
    "import sys; from utils.errors import run_command_line\n"
    "sys.exit(run_command_line(lambda: [print('a line', flush={flush}) for _ in range(100_000)]))"
)


def test_output_for_a_reader_that_has_ended_is_dropped_without_a_word():
    for flush in (True, False):
        command = [sys.executable, "-c", PRINTS.format(flush=flush)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "a line\n"
        writer.stdout.close()
        assert writer.stderr.read() == ""
        assert writer.wait() == READER_GONE
