"""What an attack did to a prompt and to the model's accuracy: for a file, and for the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from promptbench.prompt_accuracy import PromptAccuracy
from promptbench.search import SearchResult
from utils.intervals import wilson_interval


def attack_report(name: str, result: SearchResult, accuracy: PromptAccuracy) -> dict[str, Any]:
    """A search's result as JSON: prompts, accuracies with 95% intervals (Wilson), the performance drop rate (None where
    the clean accuracy is 0), which samples were answered rightly, queries, and the whole search."""

    def interval(prompt: str) -> list[float]:
        return list(wilson_interval(accuracy.number_right(prompt), accuracy.number_of_samples))

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


def table(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each attack: accuracies in per cent with their intervals, PDR, queries."""
    lines = [f"{'attack':12} {'clean accuracy':>22} {'attacked accuracy':>22} {'PDR':>8} {'queries':>8}"]
    for report in reports:
        cells = [_percent(report[name], report[f"{name}_interval"]) for name in ("clean_accuracy", "attacked_accuracy")]
        drop = report["performance_drop_rate"]
        shown = "none" if drop is None else f"{100 * drop:.1f}%"
        lines.append(f"{report['attack']:12} {cells[0]:>22} {cells[1]:>22} {shown:>8} {report['number_of_queries']:>8}")
    if any(report["performance_drop_rate"] is None for report in reports):
        lines.append("PDR none: undefined, for the clean accuracy is 0")
    return lines


def _percent(share: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * share:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
