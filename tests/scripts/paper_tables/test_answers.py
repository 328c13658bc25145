"""The page of results: every result is there, every link resolves, and it works without a network."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inference_llms.answer_health import Health
from scripts.make_tables import main as make_tables
from scripts.paper_tables.answers import Result, write_answers
from scripts.paper_tables.scores import MISSING, Score
from tests.inference_llms.support import read_json_lines, write_rows
from tests.scripts.paper_tables.support import read_scores

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The links and the rows of the table of results."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.rows, self.boxes, self._in_all = [], 0, [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self._in_all |= tag == "table" and values.get("id") == "all"
        if tag == "tr" and self._in_all:
            self.rows += 1
        if tag == "input" and values.get("type") == "checkbox":
            self.boxes.append((values["value"], values["data-set"]))
        for name in ("href", "src"):
            if name in values:
                self.links.append(values[name])


@pytest.fixture
def tables(results) -> Path:
    make_tables([str(results)])
    return results / "tables"


def data_of(tables: Path, name: str) -> dict:
    """What a data file hands to the viewer."""
    text = (tables / "answers" / f"{name}.js").read_text()
    assert text.startswith(f'loaded("{name}", ') and text.endswith(");\n")
    return json.loads(text.removeprefix(f'loaded("{name}", ').removesuffix(");\n"))


def test_every_result_is_on_the_page_and_every_link_resolves(tables):
    page = Page((tables / "tables.html").read_text())
    assert page.rows - 1 == len(read_scores(tables.parent)), "a row for each score, below the heading"
    for link in page.links:
        path, _, name = link.partition("#")
        assert (tables / path).is_file(), link
        assert not name or (tables / "answers" / f"{name}.js").is_file(), link
    for file in (tables / "tables.html", tables / "answers.html"):
        assert not re.search(r"(src|href)=.?https?:|url\(|@import", file.read_text()), "works without a network"


def test_single_answers_have_their_prompts_and_verdicts(tables, results):
    boxes = {dataset: name for name, dataset in Page((tables / "tables.html").read_text()).boxes}
    by_set = {row["dataset"]: row for row in read_scores(results)}
    for dataset in ("GSM8K", "MBPP"):
        stored = data_of(tables, boxes[dataset])
        rows, prompts = stored["rows"], data_of(tables, stored["prompts"])
        assert len(rows) == int(by_set[dataset]["examples"]) and all(prompts[str(row["id"])] for row in rows)
        right = [row["right"] for row in rows]
        assert None not in right and abs(100 * sum(right) / len(right) - float(by_set[dataset]["value"])) < 1e-4


def test_the_title_of_answers_names_alpha_and_the_seed(tmp_path):
    write_rows(tmp_path / "raw.jsonl", [{"id": 0, "prompt": "?", "completion": "!"}])
    score = Score(models="LM & Math", method="TIES", mixup=True, alpha=0.5, seed=2, dataset="GSM8K")
    (result,) = write_answers(tmp_path, [replace(score, completions_file=str(tmp_path / "raw.jsonl"))])
    assert data_of(tmp_path, result.answers)["title"] == "LM & Math TIES M3 at α = 0.5, seed 2"


def test_a_missing_result_has_its_reason_beside_faults_of_its_answers(tmp_path):
    health = Health(answers=4, empty=4, cut_off=0, repeating=0, unreadable=None, same=4)
    score = Score(dataset="SST-2", attack="stresstest", status=MISSING, note="no drop rate", health=health)
    assert Result(score, "").cells(tmp_path)["remark"] == "no drop rate; of 4 answers: 4 empty"


def test_answers_to_tasks_of_the_harness_are_readable(results):
    scores = next(results.glob("save_scores/*/*.json"))
    (raw,) = results.glob("save_raw_generations/*/*/gsm8k.jsonl")
    rows = read_json_lines(raw)
    there, samples = raw.with_name("lm_eval_own.jsonl"), results / "save_lm_eval_samples" / "own.jsonl"
    write_rows(there, [{**row, "completion": json.dumps([[row["completion"]]])} for row in rows])
    write_rows(samples, [{"id": row["id"], "right": True} for row in rows])
    own = {"accuracy": 1.0, "raw_generations": str(there), "files": [str(samples)], "evaluator_command": None}
    scores.write_text(json.dumps({"lm_eval:own": {**json.loads(scores.read_text())["gsm8k"], **own}}))
    make_tables([str(results)])
    boxes = {dataset: name for name, dataset in Page((results / "tables/tables.html").read_text()).boxes}
    shown = {row["id"]: row["completion"] for row in data_of(results / "tables", boxes["lm_eval:own"])["rows"]}
    assert shown == {row["id"]: row["completion"] for row in rows}


def test_answers_cannot_break_out_of_their_file(results):
    (raw,) = results.glob("save_raw_generations/*/*/gsm8k.jsonl")
    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    rows[0]["completion"] += " </script><script>alert(1)</script>\u2028"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tables([str(results)])
    boxes = {dataset: name for name, dataset in Page((results / "tables/tables.html").read_text()).boxes}
    text = (results / "tables/answers" / f"{boxes['GSM8K']}.js").read_text()
    assert "</script>" in text and "\u2028" not in text, "a separate file, in which only line ends matter"
    assert "alert(1)" not in (results / "tables/tables.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_two_results_are_compared_in_a_browser(tables, tmp_path):
    names = [name for name, dataset in Page((tables / "tables.html").read_text()).boxes if dataset == "GSM8K"]
    pair = f"{names[0]},{names[0]}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--timeout=4000"]
    address = f"{(tables / 'answers.html').as_uri()}#{pair}"
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    shown = int(next(iter(read_scores(tables.parent, dataset="GSM8K")))["examples"])
    assert f"{shown} of {shown} answers" in done.stdout
    assert done.stdout.count('<section class="answer">') == shown and "<mark>" not in done.stdout
