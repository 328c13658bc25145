"""The hours that a search has used, and those that are left, from measured times."""

from collections.abc import Mapping

from scripts.mixup_search.search_space import number_of_draws
from scripts.mixup_search.store import TEST, VALIDATION, SearchStore

TESTED = 2  # the chosen draw and the baseline


def hours_lines(store: SearchStore, devices: int = 1, engines: int = 1) -> list[str]:
    """The engines' time for the answers so far and their starts, and the estimate for the missing answers and a start
    of each engine. `devices`: GPUs of an engine."""
    answered, seconds = {}, {}
    for (task, part), (number, spent) in store.answer_seconds().items():
        answered[task, part] = number
        seconds[task] = seconds.get(task, 0.0) + spent
    if not answered:
        return []
    of_task = {task: sum(n for (name, _), n in answered.items() if name == task) for task in seconds}
    unit = "engine hours" if devices == 1 else "GPU hours"
    answering, starts = sum(seconds.values()), store.start_seconds()
    used = devices * (answering + sum(starts))
    lines = [f"used: {used / 3600:.2g} {unit} for {sum(answered.values()):,} answers{_and_starts(len(starts))}"]
    missing = {key: max(planned - answered.get(key, 0), 0) for key, planned in _planned(store).items()}
    # A task without answers takes as long as the mean of the others.
    mean = answering / sum(of_task.values())
    left = sum(
        number * (seconds[task] / of_task[task] if task in of_task else mean) for (task, _), number in missing.items()
    )
    if any(missing.values()):
        number = engines if starts else 0
        left += number * sum(starts) / max(len(starts), 1)
        answers = f"{sum(missing.values()):,} answers{_and_starts(number)}"
        lines.append(f"left: about {devices * left / 3600:.2g} {unit} for {answers}")
    return lines


def _and_starts(number: int) -> str:
    return f" and {number} start{'s' if number > 1 else ''} of an engine" if number else ""


def _planned(store: SearchStore) -> Mapping[tuple[str, str], int]:
    """How many answers the whole search has, by task and part."""
    identity = store.identity
    draws = number_of_draws(identity)
    references = sum(candidate.kind != "draw" for candidate in store.candidates())
    rungs, answers, kept = identity["rungs"], 0, draws
    for before, size in zip([0, *rungs], rungs, strict=False):
        answers += kept * (size - before)
        kept = -(-kept // 2)
    planned = {}
    for task in identity["tasks"]:
        planned[task, VALIDATION] = answers + references * rungs[-1]
        planned[task, TEST] = TESTED * identity["test"][task]
    return planned
