"""What models, tasks and methods are called in the paper's tables."""

ROLES = {"instruct": "LM", "math": "Math", "code": "Code"}
# By the task's name here: the data set's in the paper, and how many examples its test set has (LiveBench: those of the
# release 2024-11-25).
DATA_SETS = {
    "alpaca_eval": ("AlpacaEval", 805),
    "gsm8k": ("GSM8K", 1319),
    "MATH": ("MATH", 5000),
    "human_eval": ("HumanEval", 164),
    "mbpp": ("MBPP", 500),
    "instruction_following": ("LiveBench-Instruction", 200),
    "coding": ("LiveBench-Coding", 128),
    "typos": ("LiveBench-TypoFixing", 50),
    "sst2": ("SST-2", 872),
    "cola": ("CoLA", 516),
}
METHODS = {"average_merging": "average", "task_arithmetic": "task arithmetic", "ties_merging": "TIES"}
PAPER_ALPHA = 0.5


def models_name(tasks_name: str) -> str:
    """`instruct_math` as LM & Math."""
    return " & ".join(ROLES.get(role, role) for role in tasks_name.split("_"))
