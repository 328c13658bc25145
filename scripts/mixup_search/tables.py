"""The tables of a search, as rows of cells: its candidates on the validation part, and the choice on the test part."""

from collections.abc import Sequence

from scripts.mixup_search.candidate import Candidate, Result
from scripts.mixup_search.choice import Difference
from scripts.mixup_search.findings import Findings, has_all
from scripts.mixup_search.search_space import option_value

CHOSEN_MARK, FAULT_MARK = "*", "!"


def candidate_table(findings: Findings) -> list[list[str]]:
    """A header and a row for each candidate that has a score: references, the draws by mean gain, then those that have
    answered fewer examples."""
    header = ["", "candidate", *(f"ratio of {role}" for role in findings.roles), *findings.varied]
    rows = [[*header, *findings.tasks, "mean gain"]]
    for candidate in _in_order(findings):
        rows.append(
            [
                CHOSEN_MARK if candidate == findings.chosen else "",
                candidate.name,
                *_ratios(candidate, len(findings.roles)),
                *(_number(option_value(candidate, name)) for name in findings.varied),
                *(_validation_cell(findings, candidate, task) for task in findings.tasks),
                points(findings.mean_gain(candidate)),
            ]
        )
    return rows


def test_table(findings: Findings) -> list[list[str]]:
    """A header, a row for each candidate that was tested, and one for the paired difference; the header alone where
    nothing was."""
    several = len(findings.tasks) > 1
    rows = [["", *findings.tasks, *(["mean"] if several else [])]]
    for candidate in findings.candidates:
        scores = findings.tested.get(candidate.name)
        if not scores:
            continue
        name = f"{candidate.name} (chosen)" if candidate == findings.chosen else candidate.name
        row = [name, *(_score_cell(scores.get(task)) for task in findings.tasks)]
        if several and has_all(findings.tested, candidate, findings.tasks):
            row.append(f"{100 * sum(scores[task].score for task in findings.tasks) / len(findings.tasks):.1f}%")
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    if findings.differences:
        names = [*findings.tasks, *(["mean"] if several else [])]
        cells = [difference_cell(findings.differences.get(name)) for name in names]
        rows.append(["chosen less equal ratios, in points", *cells])
    return rows


def verdict(findings: Findings) -> str | None:
    """What the test says of the choice, in a sentence; None where it is not tested."""
    difference = findings.differences.get("mean" if len(findings.tasks) > 1 else findings.tasks[0])
    if difference is None:
        return None
    gain = "by " + points(abs(difference.mean)).lstrip("+") + " points"
    where = "above" if difference.mean > 0 else "below"
    told = f"{where} equal ratios {gain}" if difference.mean else "as equal ratios do"
    told = f"On the test part {findings.chosen.name} scores {told}"
    if len(findings.tasks) > 1:
        told += " in the mean over the tasks"
    if difference.low <= 0 <= difference.high:
        return f"{told}; the 95% interval holds 0, so that this may be chance."
    return f"{told}; the 95% interval does not hold 0."


def points(share: float | None) -> str:
    """A difference of scores in percentage points, with its sign; a dash for None."""
    return "–" if share is None else f"{100 * share + 0.0:+.1f}".replace("-", "−").replace("−0.0", "+0.0")


def difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    return f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]"


def _in_order(findings: Findings) -> list[Candidate]:
    compared = findings.compared_draws
    if findings.gains:
        compared = sorted(compared, key=lambda draw: -findings.mean_gain(draw))
    behind = [draw for draw in findings.draws if draw not in compared]
    return [one for one in (*findings.references, *compared, *behind) if one.name in findings.reached]


def _ratios(candidate: Candidate, number_of_models: int) -> Sequence[str]:
    mixup = candidate.parameters.mixup
    return ["–"] * number_of_models if mixup is None else [f"{weight:.4f}" for weight in mixup.weights]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _validation_cell(findings: Findings, candidate: Candidate, task: str) -> str:
    """The score that candidates are compared by, else the one over other examples, with their number; marked where the
    answers are faulty."""
    fault = f" {FAULT_MARK}" if task in findings.faults.get(candidate.name, {}) else ""
    result = findings.compared.get(candidate.name, {}).get(task)
    if result is not None and (candidate.kind != "draw" or candidate in findings.compared_draws):
        return _score_cell(result) + fault
    result = findings.reached[candidate.name].get(task)
    return "–" if result is None else f"{_score_cell(result)} of {result.examples}{fault}"


def _score_cell(result: Result | None) -> str:
    if result is None:
        return "–"
    low, high = result.interval
    return f"{100 * result.score:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
