"""Pages of single answers: one viewer, and a data file for each result and for each set of prompts."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.data_sets import read_rows
from inference_llms.tasks import LM_EVAL
from scripts.paper_tables.lm_eval_answers import readable_answer, readable_prompt
from scripts.paper_tables.scores import MISSING, OK, Score
from utils.errors import UserError
from utils.pages import render_page
from utils.whole_files import remove_folder, write_whole

VIEWER = Path(__file__).with_name("answers.html.j2")
FOLDER = "answers"  # beside the page of tables


@dataclass(frozen=True)
class Result:
    """A score as a row of the page. `answers`: the name of its data file, empty without stored answers."""

    score: Score
    answers: str

    def cells(self, folder: Path) -> dict[str, Any]:
        """The row's values by column, and its links relative to the page's folder."""
        score = self.score
        seeds = "" if score.seed is None else str(score.seed)
        return {
            "models": score.models,
            "method": ", ".join(filter(None, (score.method, score.line[2]))) or "alone",
            "mask": "DARE" if score.dare else "",
            "M3": "" if not score.mixup else "given" if score.alpha is None else f"α = {score.alpha:g}",
            "seed": seeds,
            "data set": score.dataset + (f", {score.attack}" if score.attack else ""),
            "metric": score.metric,
            "score": score.value,
            "low": score.low,
            "high": score.high,
            "examples": score.examples,
            "tokens": score.tokens,
            "remark": "; ".join(filter(None, (score.note, score.health and score.health.warning()))),
            "status": score.status,
            "record": os.path.relpath(score.result_file, folder) if score.result_file else "",
            "answers": self.answers,
        }


def write_answers(folder: Path, scores: Sequence[Score]) -> list[Result]:
    """Write the viewer and its data files into `folder`/answers; returns every score with the name of its file.

    Files are JavaScript that calls one function, because a page that was opened from a disk may load scripts but no
    other data."""
    place = folder / FOLDER
    if place.is_dir():
        remove_folder(place)
    prompts: dict[str, str] = {}  # names of files by content
    results = []
    for score in scores:
        rows = _rows(score)
        if rows:
            prompt_name = _write_prompts(place, rows, prompts)
            name = _name(score)
            content = {
                "title": " ".join(filter(None, (score.models, score.method, score.line[2], _draw(score)))),
                "dataset": score.dataset,
                "prompts": prompt_name,
                "rows": [{key: row[key] for key in ("id", "completion", "tokens", "right")} for row in rows],
            }
            _write_data(place / f"{name}.js", name, content)
        results.append(Result(score, name if rows else ""))
    if any(result.answers for result in results):
        write_whole(folder / f"{FOLDER}.html", render_page(VIEWER, title="Answers", folder=FOLDER))
    return results


def _draw(score: Score) -> str:
    mask = "DARE" if score.dare else ""
    mixup = "" if not score.mixup else "M3" if score.alpha is None else f"M3 at α = {score.alpha:g}"
    return ", ".join(filter(None, (mask, mixup, "" if score.seed is None else f"seed {score.seed}")))


def _name(score: Score) -> str:
    key = json.dumps([score.result_file, score.dataset, *map(str, score.line), *map(str, score.draw)])
    return f"a{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _rows(score: Score) -> list[dict[str, Any]]:
    """The stored answers of a score with their verdicts, 0 to 1 (None: not known), by example."""
    path = Path(score.completions_file)
    if score.status not in (OK, MISSING) or not score.completions_file or not path.is_file():
        return []
    try:
        stored = [row.fields for row in read_rows(path, {"completion": str}, may_end_torn=True)]
    except UserError:  # reported where scores are collected
        return []
    verdicts = _verdicts(score, stored)
    if score.dataset.startswith(LM_EVAL):
        stored = [_readable(row) for row in stored]
    return [
        {"id": row.get("id"), "prompt": row.get("prompt", ""), "completion": row["completion"],
         "tokens": row.get("tokens"), "right": verdicts.get(row.get("id"))}
        for row in sorted(stored, key=lambda row: (str(type(row.get("id"))), row.get("id")))
    ]  # fmt: skip


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = row.get("prompt", "")
    return {**row, "prompt": readable_prompt(prompt), "completion": readable_answer(prompt, row["completion"])}


def _verdicts(score: Score, stored: Sequence[Mapping[str, Any]]) -> dict[Any, float]:
    """The verdicts by the ids of the stored rows. Evaluators name an answer by its id, by its position in the set, or
    by its instruction, which its prompt holds."""
    known = dict(score.values or ())
    ids = [row.get("id") for row in stored]
    if known.keys() <= set(ids):
        return known
    if known.keys() == set(range(len(ids))):
        return {name: known[position] for position, name in enumerate(sorted(ids))}
    by_prompt = {}
    for row in stored:
        values = [value for name, value in known.items() if isinstance(name, str) and name in row.get("prompt", "")]
        if len(values) == 1:
            by_prompt[row.get("id")] = values[0]
    return by_prompt


def _write_prompts(place: Path, rows: Sequence[Mapping[str, Any]], prompts: dict[str, str]) -> str:
    """Write the prompts of these rows unless a file holds them; returns its name."""
    content = {str(row["id"]): row["prompt"] for row in rows}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if digest not in prompts:
        prompts[digest] = f"p{digest[:12]}"
        _write_data(place / f"{prompts[digest]}.js", prompts[digest], content)
    return prompts[digest]


def _write_data(path: Path, name: str, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    write_whole(path, f"loaded({json.dumps(name)}, {text});\n")
