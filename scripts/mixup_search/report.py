"""Report of a search: tables and the choice as text, and one HTML page that also has the figures."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_merging_methods.merge_parameters import MASK_MERGING, MergeParameters
from model_merging_methods.merge_request import PRETRAINED
from model_merging_methods.method import Option, Value
from scripts.mixup_search.choice import RULE, Difference, SearchSummary, has_all
from scripts.mixup_search.figures import draw_figures, save_figure
from scripts.mixup_search.hours import hours_lines
from scripts.mixup_search.search_space import Candidate
from scripts.mixup_search.store import Result, SearchStore
from utils.model_folders import FINETUNED_MODELS
from utils.pages import render_page
from utils.whole_files import write_whole

CHOSEN_MARK, FAULT_MARK = "*", "!"
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def report_lines(store: SearchStore, devices: int = 1) -> list[str]:
    """The tables, the choice, the hours of engines with this many GPUs, and the missing parts. Raises UserError if the
    file holds no results."""
    summary = SearchSummary(store)
    numbers = ", ".join(f"{number} of {task}" for task, number in summary.numbers.items())
    lines = [f"validation part, examples: {numbers}" if numbers else "validation part, answers so far"]
    lines += _aligned(candidate_table(summary))
    lines += [f"{FAULT_MARK} check the completions: {line}" for line in summary.fault_lines()]
    if summary.chosen is not None:
        lines += ["", f"{CHOSEN_MARK} chosen: the largest mean gain over the fine-tunes on the validation part"]
        if summary.tested:
            lines += ["", "test part", *_aligned(tested_table(summary)), *outcome_lines(summary)]
        lines += ["", f"save the merge of {summary.chosen.name} with"]
        lines.append(f"  {save_command(summary.identity, summary.chosen.parameters)}")
    lines += ["", *hours_lines(store, devices)]
    if missing := list(summary.missing()):
        lines += ["", "still missing:", *(f"  {line}" for line in missing)]
    return lines


def write_report(store: SearchStore, folder: Path) -> Path:
    """Write the figures, as PNG and SVG, and a self-contained page into `folder`, replacing an earlier report; returns
    the page's path. Raises UserError if the file holds no results."""
    summary = SearchSummary(store)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = summary.chosen
    page = render_page(
        _TEMPLATE,
        title=f"{_title(summary)}: {' + '.join(summary.roles)}",
        summary=summary,
        rule=RULE,
        candidates=candidate_table(summary),
        tests=tested_table(summary) if chosen is not None and summary.tested else [],
        outcome=outcome_lines(summary),
        command=None if chosen is None else save_command(summary.identity, chosen.parameters),
        figures={name: _inline(save_figure(figure, folder, name)) for name, figure in draw_figures(summary).items()},
        marks=(CHOSEN_MARK, FAULT_MARK),
    )
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def candidate_table(summary: SearchSummary) -> list[list[str]]:
    """A header and a row for each candidate with a score: references, draws by mean gain, then draws over fewer
    examples."""
    compared = summary.compared_draws
    if summary.gains:
        compared = sorted(compared, key=lambda draw: -summary.mean_gain(draw))
    behind = [draw for draw in summary.draws if draw not in compared]
    roles = summary.roles if summary.has_ratios else []
    ratios = [f"ratio of {role}" for role in roles]
    rows = [["", "candidate", *ratios, *map(summary.label, summary.varied), *summary.tasks, "mean gain"]]
    for one in (*summary.references, *compared, *behind):
        if one.name in summary.reached:
            row = [CHOSEN_MARK if one == summary.chosen else "", one.name]
            row += [f"{ratio:.4f}" for ratio in one.ratios[: len(roles)]] if one.ratios else ["–"] * len(roles)
            row += ["–" if one.option(name) is None else f"{one.option(name):.4g}" for name in summary.varied]
            row += [_validation_cell(summary, one, task) for task in summary.tasks]
            rows.append([*row, points(summary.mean_gain(one))])
    return rows


def tested_table(summary: SearchSummary) -> list[list[str]]:
    """A header, a row for each tested candidate, and one for the paired difference."""
    several = len(summary.tasks) > 1
    columns = [*summary.tasks, *(["mean"] if several else [])]
    rows = [["", *columns]]
    for candidate in summary.candidates:
        scores = summary.tested.get(candidate.name)
        if scores:
            name = f"{candidate.name} (chosen)" if candidate == summary.chosen else candidate.name
            rows.append([name, *(_score_cell(scores.get(task)) for task in summary.tasks)])
            if several:
                is_whole = has_all(summary.tested, candidate, summary.tasks)
                rows[-1].append(f"{100 * sum(r.score for r in scores.values()) / len(scores):.1f}%" if is_whole else "")
    if summary.differences:
        cells = [_difference_cell(summary.differences.get(name)) for name in columns]
        rows.append([f"chosen minus {summary.baseline.name}, in points", *cells])
    return rows


def outcome_lines(summary: SearchSummary) -> list[str]:
    """The outcome of the test in one sentence; empty before the test."""
    difference = summary.differences.get("mean" if len(summary.tasks) > 1 else summary.tasks[0])
    if difference is None:
        return []
    over_tasks = " in the mean over the tasks" if len(summary.tasks) > 1 else ""
    side = "above" if difference.mean > 0 else "below"
    baseline, chance = summary.baseline.name, "does not contain 0"
    outcome = f"{points(abs(difference.mean)).lstrip('+')} points {side} {baseline}"
    if difference.low <= 0 <= difference.high:
        chance = "contains 0, so the difference may be chance"
    if difference.mean == 0:
        outcome, chance = f"the same as {baseline}", "contains 0"
    return [f"On the test part {summary.chosen.name} scores {outcome}{over_tasks}; the 95% interval {chance}."]


def _title(summary: SearchSummary) -> str:
    if summary.has_ratios:
        return "Search for M3's ratio"
    varied = ", ".join(map(summary.label, summary.varied))
    return f"Search for {varied or 'options'} of {summary.candidates[0].parameters.method}"


def points(share: float | None) -> str:
    """A difference of scores in percentage points, with its sign; a dash for None."""
    return "–" if share is None else f"{100 * share + 0.0:+.1f}".replace("-", "−").replace("−0.0", "+0.0")


def save_command(identity: Mapping[str, Any], parameters: MergeParameters) -> str:
    """The main job's command line, for a POSIX shell, that saves this merge of the search's models, to the last bit.

    Reads `roles`, `models` and, if present, `models_dir` and `allow_unrelated` of the search's identity. Has only
    options with an effect, because the main job refuses others.
    """
    mask, roles, ratios = parameters.mask, identity["roles"], parameters.mixup and parameters.mixup.ratios
    by_layer = parameters.mixup and parameters.mixup.by_layer
    options = {
        **_model_options(identity),
        "models_dir": identity.get("models_dir"),
        "allow_unrelated": identity.get("allow_unrelated"),
        "merging_method_name": MASK_MERGING if mask else parameters.method,
        "mask_apply_method": parameters.method if mask else None,
        "weight_format": mask and mask.weight_format,
        "mask_strategy": mask and mask.strategy,
        **_declared_options(parameters, roles),
        "mixup_lambda": None if by_layer else ratios and (ratios[:1] if len(ratios) == 2 else ratios),
        "ratio_by_layer": by_layer or None,
        "seed": parameters.seed if parameters.uses_seed else None,
        "dtype": parameters.dtype,
        "config_from": parameters.config_from,
        "exclude_param_names_regex": parameters.exclude_param_names_regex or None,
        "merge_only": True,
    }
    words = [word for name, value in options.items() for word in _option(name, value)]
    return shlex.join(["python", "merge_llms_instruct_math_code.py", *words])


def _model_options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The options that name the models: `--merge_math` if all are the paper's roles in the paper's order, else
    `--models NAME=PATH`."""
    roles, models = identity["roles"], identity["models"]
    if roles == [role for role in FINETUNED_MODELS if role in roles]:
        merged = {f"merge_{role}": True for role in roles}
        return merged | {f"{role}_model": models.get(role) for role in (PRETRAINED, *roles)}
    return {
        "models": tuple(f"{role}={models[role]}" for role in roles),
        f"{PRETRAINED}_model": models.get(PRETRAINED),
    }


def _declared_options(parameters: MergeParameters, roles: Sequence[str]) -> dict[str, Any]:
    """The options of the mask and of the method. One that both have is the mask's; M3's ratios replace `weight`."""
    values = {**parameters.values, **(parameters.mask.values if parameters.mask else {})}
    declared = {**parameters.declared.options, **(parameters.mask.declared.options if parameters.mask else {})}
    if parameters.mixup is not None:
        values.pop("weight", None)
    words = [_declared_option(declared[name], value, roles) for name, value in values.items()]
    return {name: value for name, value in words if value is not None}


def _declared_option(option: Option, value: Value, roles: Sequence[str]) -> tuple[str, Any]:
    """The name and value on the command line; no value for a switch at its default."""
    if option.type is bool:
        return (option.name if value else f"no-{option.name}", None if value == option.default else True)
    if isinstance(value, tuple):
        return option.name, tuple(f"{role}={number}" for role, number in zip(roles, value, strict=True))
    return option.name, value


def _option(name: str, value: Any) -> list[str]:
    """The words of an option, none for None and False. A value that starts with a hyphen is joined to the name."""
    if value is None or value is False:
        return []
    if value is True or isinstance(value, tuple):
        return [f"--{name}", *map(str, () if value is True else value)]
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def _validation_cell(summary: SearchSummary, candidate: Candidate, task: str) -> str:
    """The score by which candidates are compared, else the one over other examples, with their number. Faulty answers
    have a mark."""
    fault = f" {FAULT_MARK}" if task in summary.faults.get(candidate.name, {}) else ""
    result = summary.compared.get(candidate.name, {}).get(task)
    if result is not None and (candidate.kind != "draw" or candidate in summary.compared_draws):
        return _score_cell(result) + fault
    result = summary.reached[candidate.name].get(task)
    return "–" if result is None else f"{_score_cell(result)} of {result.examples}{fault}"


def _score_cell(result: Result | None) -> str:
    if result is None:
        return "–"
    low, high = result.interval
    return f"{100 * result.score:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    return f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    from tabulate import tabulate

    return tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()


def _inline(file: Path) -> str:
    """The svg element of a figure, with ids that are unique in the page."""
    svg = file.read_text(encoding="utf-8")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{file.stem}-", svg[svg.index("<svg") :])
