"""Programs out of prose: what the paper's scripts keep of a completion for HumanEval and MBPP."""

import ast
import warnings

PYTHON_FENCE = "```python"
SOLUTION_MARK = "The solution is:"
ANSWER_MARK = "The answer is:"


def extract_code(completion: str, drop_carriage_returns: bool, fence_end: str, ends: tuple[str, ...]) -> str:
    """The program in `completion`, by the paper's steps in their order.

    `fence_end` closes a "```python" block (plain fences stay as they are); everything from each of `ends`
    on is cut off.
    """
    code = completion.rpartition("### Response:")[2].replace("\t", "    ")
    if drop_carriage_returns:
        code = code.replace("\r", "")
    code = code.strip()
    if PYTHON_FENCE in code:
        code = code[code.index(PYTHON_FENCE) :].replace(PYTHON_FENCE, "")
        # A block that never ends keeps its blank first lines, as in the published scripts.
        if fence_end in code:
            code = code[: code.index(fence_end)].strip()
    for end in ends:
        if end in code:
            code = code[: code.index(end)].strip()
    for mark in (SOLUTION_MARK, ANSWER_MARK):
        if mark in code:
            code = code.partition(mark)[2].partition(f"\n\n{ANSWER_MARK}")[0].strip()
    return code


def number_of_statements(program: str) -> int:
    """How many statements a program has, by Python's parser; nothing is run. Bare expressions do not count, because
    prose such as "Sure, here" is one. 0 for text that is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes, on the user's screen
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        return 0
    return sum(isinstance(node, ast.stmt) and not isinstance(node, ast.Expr) for node in ast.walk(tree))
