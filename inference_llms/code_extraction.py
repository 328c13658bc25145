"""Extract programs from completions for HumanEval and MBPP, as the paper's scripts do."""

import ast
import warnings

PYTHON_FENCE = "```python"
SOLUTION_MARK = "The solution is:"
ANSWER_MARK = "The answer is:"


def extract_code(completion: str, drop_carriage_returns: bool, fence_end: str, ends: tuple[str, ...]) -> str:
    """Extract the program from `completion`, in the order of the paper's steps.

    `fence_end` closes a "```python" block (plain fences are kept); each of `ends` cuts off everything after it.
    """
    code = completion.rpartition("### Response:")[2].replace("\t", "    ")
    if drop_carriage_returns:
        code = code.replace("\r", "")
    code = code.strip()
    if PYTHON_FENCE in code:
        code = code[code.index(PYTHON_FENCE) :].replace(PYTHON_FENCE, "")
        # A block without an end keeps its blank first lines, as in the published scripts.
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
    """The number of statements in a program, which is parsed but not run. 0 for text that is not Python.

    Bare expressions do not count, because prose such as "Sure, here" is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes; users would see it
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        return 0
    return sum(isinstance(node, ast.stmt) and not isinstance(node, ast.Expr) for node in ast.walk(tree))
