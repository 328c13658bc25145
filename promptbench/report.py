"""Report an attack, in a file and on the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from inference_llms.answer_health import Health
from promptbench.prompt_accuracy import PromptAccuracy
from promptbench.prompt_task import PromptTask
from promptbench.search import SearchResult
from utils.intervals import wilson_interval


def attack_report(name: str, result: SearchResult, accuracy: PromptAccuracy) -> dict[str, Any]:
    """A search's result as JSON: prompts, accuracies with 95% intervals (Wilson), the performance drop rate (None if
    the clean accuracy is 0), which samples were answered correctly, the health of the answers, the number of queries,
    and the whole search."""

    def interval(prompt: str) -> list[float]:
        right = accuracy.right(prompt)
        return list(wilson_interval(sum(right), len(right)))

    return {
        "attack": name,
        "clean_prompt": result.clean_prompt,
        "attacked_prompt": result.final_prompt,
        "attacked_prompt_marked": marked(result.final_prompt, result.changed_places),
        "changed_words": [result.final_prompt[start:end] for start, end in result.changed_places],
        "clean_accuracy": result.clean_accuracy,
        "clean_accuracy_interval": interval(result.clean_prompt),
        "attacked_accuracy": result.final_accuracy,
        "attacked_accuracy_interval": interval(result.final_prompt),
        "clean_right": accuracy.right(result.clean_prompt),
        "attacked_right": accuracy.right(result.final_prompt),
        "clean_health": asdict(accuracy.health(result.clean_prompt)),
        "attacked_health": asdict(accuracy.health(result.final_prompt)),
        "performance_drop_rate": result.performance_drop_rate,
        "number_of_queries": result.number_of_queries,
        "ranking": [asdict(word) for word in result.ranking],
        "steps": [asdict(step) for step in result.steps],
    }


def marked(prompt: str, places: Sequence[tuple[int, int]]) -> str:
    """A prompt with the words at these places between » and «."""
    for start, end in sorted(places, reverse=True):
        prompt = f"{prompt[:start]}»{prompt[start:end]}«{prompt[end:]}"
    return prompt


def prompt_lines(report: Mapping[str, Any]) -> list[str]:
    """The clean and the attacked prompt, for the screen."""
    clean, attacked = (
        [f"    {line}" for line in report[prompt].split("\n")] for prompt in ("clean_prompt", "attacked_prompt_marked")
    )
    return [f"{report['attack']}: the clean prompt", *clean, "  and attacked", *attacked]


def result_table(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per attack: accuracies in percent with their intervals, PDR, number of queries."""
    rows = []
    for report in reports:
        shown = [_percent(report[name], report[f"{name}_interval"]) for name in ("clean_accuracy", "attacked_accuracy")]
        rate = report["performance_drop_rate"]
        shown.append("undefined" if rate is None else f"{100 * rate:.1f}%")
        rows.append([report["attack"], *shown, report["number_of_queries"]])
    headers = ["attack", "clean accuracy", "attacked accuracy", "PDR", "queries"]
    return tabulate(rows, headers, tablefmt="plain", colalign=("left", *["right"] * 4)).split("\n")


def health_lines(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each prompt with a fault in more than one of ten answers. All reports have the same clean prompt."""
    prompts = {"the clean prompt": reports[0]["clean_health"]}
    prompts |= {f"{report['attack']}'s prompt": report["attacked_health"] for report in reports}
    warnings = {name: Health(**health).warning() for name, health in prompts.items()}
    return [f"check the completions with {name}: {warning}" for name, warning in warnings.items() if warning]


def why_no_drop_rate(task: PromptTask, model: str, accuracy: PromptAccuracy) -> str | None:
    """Score the clean prompt; returns a line with the health of the answers if none of them is right, because the
    performance drop rate is then undefined."""
    if accuracy([task.prompt]) != [0]:
        return None
    labels = " or ".join(map(repr, task.labels))
    completions = accuracy.completions(task.prompt)
    looks = accuracy.health(task.prompt).warning() or f"{len(completions)} answers, all with the wrong label"
    first, _ = completions[0]
    return (
        f"{model}: no answer to the clean prompt of {task.name} is right ({looks}; the first is {_shortened(first)}), "
        f"so an attack has no accuracy to lower; choose a model that answers {labels}"
    )


def _shortened(text: str) -> str:
    """A text in one line of about 60 characters at most."""
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _percent(share: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
