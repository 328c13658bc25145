"""The table of methods and its CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from inference_llms.tasks import TASKS
from model_merging_methods.methods import METHODS
from scripts.paper_tables.method_scores import Comparison, MethodScore, compare_methods, mean_share
from scripts.paper_tables.names import dataset_name
from scripts.paper_tables.scores import share_interval
from scripts.paper_tables.tables import AGREEMENT, NOTHING, CellLines, Table, signed, with_interval
from scripts.paper_tables.tuning import BASELINE, SCALE, left_out

_VERDICTS = ("better", "worse")
COLUMNS = (
    "models", "method", "sees", "options", "dataset", "value", "low", "high", "examples", "default_value",
    "difference", "difference_low", "difference_high", "p", "p_holm", "verdict", "note", "command", "save_command",
    "result_file",
)  # fmt: skip


def methods_table(scores: Sequence[MethodScore]) -> Table:
    """Rows: methods by models and mean; columns: options, tasks, means, and the difference from task arithmetic."""
    tasks = _tasks(scores)
    head = ["models", "method", "sees", "tuned", *map(dataset_name, tasks), "mean", "mean at default"]
    table = Table("methods", "Methods", [*head, f"minus {_words(BASELINE)}", "p, Holm"], 2)
    comparisons = compare_methods(scores)
    for score in _sorted(scores):
        labels, sees = [score.models, score.method], (METHODS[score.method].sees.value,)
        if score.right:
            cells = [sees, (score.options or NOTHING,), *(_task_cell(table, score, task) for task in tasks)]
            means = [(f"{100 * mean_share(right):.1f}",) for right in (score.right, score.right_at_default)]
            table.add(labels, [*cells, *means, *_comparison_cells(score, comparisons.get(score.key))])
        else:
            table.add(labels, [sees, (f"{NOTHING} {table.note(score.note)}",), *[(NOTHING,)] * (len(head) - 2)])
    if table.rows:
        table.remarks += _remarks(scores, tasks, comparisons)
    return table


def _tasks(scores: Sequence[MethodScore]) -> list[str]:
    return [task for task in TASKS if any(task in score.right for score in scores)]


def _sorted(scores: Sequence[MethodScore]) -> list[MethodScore]:
    """By models, the largest group first, then by mean; methods without a score last."""

    def order(score: MethodScore) -> tuple:
        return -score.models.count("&"), score.models, 1 if score.mean is None else -score.mean, score.method

    return sorted(scores, key=order)


def _task_cell(table: Table, score: MethodScore, task: str) -> CellLines:
    if task not in score.right:
        return (NOTHING,)
    value = with_interval(*_value(score, task))
    return (value, table.note(score.health[task])) if task in score.health else (value,)


def _value(score: MethodScore, task: str) -> tuple[float, float, float]:
    """The share of right answers with its 95% interval, in per cent."""
    right = score.right[task].values()
    share = sum(right) / len(right)
    return 100 * share, *share_interval(share, len(right))


def _comparison_cells(score: MethodScore, comparison: Comparison | None) -> list[CellLines]:
    if comparison is None:
        return [("baseline",) if score.method == BASELINE else (NOTHING,), (NOTHING,)]
    found = comparison.difference
    value, low, high = (signed(100 * number) for number in (found.mean, found.low, found.high))
    p = f"{comparison.corrected:.2g}" if comparison.corrected >= 0.001 else "< 0.001"
    return [(f"{value} [{low}, {high}]",), (", ".join(filter(None, (p, comparison.verdict))),)]


def _remarks(scores: Sequence[MethodScore], tasks: Sequence[str], comparisons: Mapping[tuple, Comparison]) -> list[str]:
    validation = " or ".join(map(str, sorted({size for score in scores for size in score.validation.values()})))
    test = ", ".join(f"{dataset_name(task)} {_sizes(scores, task)}" for task in tasks)
    tuned = [(score.method, name, _listed(values)) for score in scores for name, (_, values) in score.tuned.items()]
    scales = " or ".join(dict.fromkeys(values for _, name, values in tuned if name == SCALE))
    others = "; ".join(f"{method}: {name}, {values}" for method, name, values in tuned if name != SCALE)
    edge = sum(score.at_edge for score in scores)
    remarks = [
        "Per cent of the test questions, with Wilson's 95% interval. Every method with a scaling coefficient s chose "
        f"it from {scales}, by the mean score on other questions, {validation} of each task; the first in a "
        f"tie. Other methods chose another option ({others or NOTHING}). Those without such an option, and all "
        "other options, are at their defaults. Mean at default: with the first of the values.",
        f"Minus {_words(BASELINE)}: the paired difference of the means, over the same questions, from task arithmetic "
        "of the same models, tuned in the same way; its interval is the paired bootstrap's. p: by a paired "
        "randomisation test, with Holm's correction over all comparisons of the table; better and worse: at most 0.05. "
        "Intervals are not corrected.",
        f"Test questions: {test}.",
        f"{edge} of the methods chose the smallest or the largest value of their option; a better one may lie outside.",
        "Methods that merge exactly two models merge LM & Math, and are compared on the tasks of these two.",
    ]
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out().items():
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        listed = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
        remarks.append(f"Not in the table: {listed}.")
    if "alpaca_eval" in tasks:
        remarks.append(AGREEMENT)
    unscored = [dataset_name(name) for name, task in TASKS.items() if task.program and name not in tasks and task.role]
    if unscored:
        remarks.append(f"Without --allow_code_execution there are no scores of {' and '.join(unscored)}.")
    return [*remarks, finding(comparisons)]


def _sizes(scores: Sequence[MethodScore], task: str) -> str:
    return " or ".join(map(str, sorted({len(score.right[task]) for score in scores if task in score.right})))


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _words(method: str) -> str:
    return method.replace("_", " ")


def finding(comparisons: Mapping[tuple, Comparison]) -> str:
    """What the comparisons show, in one sentence."""
    if not comparisons:
        return f"No method can be compared with tuned {_words(BASELINE)} yet."
    named = {
        verdict: [method for (_, method), comparison in comparisons.items() if comparison.verdict == verdict]
        for verdict in _VERDICTS
    }
    counts = [
        f"{len(methods) or 'none'} {'are' if len(methods) > 1 else 'is'} significantly {verdict}"
        + (f" ({', '.join(methods)})" if methods else "")
        for verdict, methods in named.items()
    ]
    open_ones = [one.difference for one in comparisons.values() if not one.verdict]
    text = f"Of {len(comparisons)} methods compared with tuned {_words(BASELINE)}, {', '.join(counts)}, and "
    text += f"{len(open_ones)} cannot be distinguished from it"
    if open_ones:
        largest = max(max(-one.low, one.high) for one in open_ones)
        text += f"; the intervals of these differences reach {100 * largest:.1f} points"
    return f"{text}."


def methods_csv(scores: Sequence[MethodScore]) -> str:
    """A row for each method and task, and one for the mean over the tasks with the comparison; values in per cent."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    comparisons = compare_methods(scores)
    for score in _sorted(scores):
        about = {"models": score.models, "method": score.method, "sees": METHODS[score.method].sees.value}
        about |= {name: getattr(score, name) for name in ("options", "note", "command", "save_command", "result_file")}
        for task in score.right:
            value, low, high = _value(score, task)
            default = score.right_at_default[task].values()
            row = {"value": value, "low": low, "high": high, "default_value": 100 * sum(default) / len(default)}
            writer.writerow(about | _rounded(row) | {"dataset": dataset_name(task), "examples": len(default)})
        row = {}
        if score.right:
            row = {"value": 100 * score.mean, "default_value": 100 * mean_share(score.right_at_default)}
        if found := comparisons.get(score.key):
            row |= {"difference": 100 * found.difference.mean, "difference_low": 100 * found.difference.low}
            row |= {"difference_high": 100 * found.difference.high, "p": found.p, "p_holm": found.corrected}
            about["verdict"] = found.verdict
        writer.writerow(about | _rounded(row) | {"dataset": "mean"})
    return text.getvalue()


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in row.items()}
