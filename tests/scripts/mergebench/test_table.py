"""MergeBench's table from small stored results."""

import json
from dataclasses import replace

import pytest

from scripts.mergebench.plan import BenchSetting
from scripts.mergebench.scores import evalplus_commands
from scripts.mergebench.suite import FULL
from scripts.mergebench.table import all_rows, row_on_record, sets_table, summary_table, write_tables
from scripts.paper_tables.tables import markdown

METHODS = ("model_soup", "task_arithmetic", "dare")
# By domain (all its data sets), how many of 40 examples each subject answers right.
RIGHT = {
    "base": {"instruction": 10, "math": 10, "multilingual": 20, "general": 32},
    "instruction": {"instruction": 40},
    "math": {"math": 20},
    "multilingual": {"multilingual": 40},
    "model_soup": {"instruction": 30, "math": 20, "multilingual": 30, "general": 28},
    "task_arithmetic": {"instruction": 30, "math": 15, "multilingual": 30, "general": 30},
    "dare": {"instruction": 4, "math": 0, "multilingual": 2, "general": 32},
}


@pytest.fixture
def setting(tmp_path) -> BenchSetting:
    """Results of one base without programs and safety, in files as runs write them."""
    base = FULL.bases[0]
    suite = replace(FULL, bases=(base,), methods={name: FULL.methods[name] for name in METHODS})
    made = BenchSetting(suite, False, tmp_path, "auto")
    for subject, by_domain in RIGHT.items():
        records = {}
        for one in suite.data_sets:
            if one.harness != "lm_eval" or one.domain not in by_domain:
                continue
            for name in one.task_names:
                records[name] = store(made.folder(base, subject), subject, name, one, by_domain[one.domain])
        path = made.folder(base, subject) / "save_scores" / "single_model" / f"{subject}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(records))
    return made


def store(root, subject, task, data_set, right) -> dict:
    """A record of a task with 40 answers, `right` of which are right, in files below `root`."""
    file = root / "save_lm_eval_samples" / "single_model" / subject / f"{task.replace(':', '_')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, "right": number < right, data_set.metric: float(number < right)} for number in range(40)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    raw = root / "save_raw_generations" / "single_model" / subject / file.name
    value = data_set.best * right / 40
    return {data_set.metric: value, "metrics": [data_set.metric], "examples": 40, "files": [str(file)],
            "raw_generations": str(raw), "tokens_per_answer": 12.0 if data_set.new_tokens else 0.0}  # fmt: skip


def rows_by_subject(setting, costs=None):
    return {row.subject: row for row in all_rows(setting, costs or {})}


def test_scores_are_divided_by_the_domains_specialist(setting):
    rows = rows_by_subject(setting)
    soup = rows["model_soup"]
    assert soup.compared_domains == ["instruction", "math", "multilingual"]
    assert soup.relative.value == pytest.approx((30 / 40 + 20 / 20 + 30 / 40) / 3)
    assert soup.relative.low < soup.relative.value < soup.relative.high
    assert rows["specialists"].relative.value == pytest.approx(1)
    assert rows["base"].relative.value == pytest.approx((10 / 40 + 10 / 20 + 20 / 40) / 3)


def test_forgetting_is_what_the_base_loses_on_general_skills(setting):
    rows = rows_by_subject(setting)
    assert rows["model_soup"].forgetting.value == pytest.approx(4 / 40)
    assert rows["task_arithmetic"].forgetting.value == pytest.approx(2 / 40)
    assert rows["dare"].forgetting.value == 0
    assert rows["model_soup"].forgetting.low > 0


def test_a_much_worse_method_stays_worse_after_holms_correction(setting):
    rows = rows_by_subject(setting)
    assert rows["dare"].verdict == "worse"
    assert rows["dare"].corrected >= rows["dare"].p
    assert rows["dare"].difference.high < 0
    assert rows["task_arithmetic"].difference is None


def test_languages_of_a_data_set_count_together(setting):
    assert rows_by_subject(setting)["base"].scores["M_ARC"].examples == 4 * 40


def test_published_values_are_beside_ours(setting):
    write_tables(setting, {})
    text = (setting.results_dir / "tables" / "mergebench.md").read_text()
    assert "RegMean++ (published)" in text
    assert "without coding" in text
    rows = json.loads((setting.results_dir / "tables" / "mergebench.json").read_text())["rows"]
    published = next(row for row in rows if row["subject"] == "published")
    assert published["data_sets"]["GSM8K"]["value"] == pytest.approx(0.4003)
    assert "MergeBench repository" in published["published"]["GSM8K"]["source"]


def test_generated_answers_have_their_tokens_beside_the_score(setting):
    rows = all_rows(setting, {})
    table = sets_table(rows, setting.suite)
    (base, *_) = (dict(zip(table.head, cells, strict=True)) for cells in table.rows)
    assert base["GSM8K"][1] == "12 tokens"
    assert [text for text in base["M_MMLU"] if "tokens" in text] == []
    assert row_on_record(rows[0], setting.suite)["data_sets"]["GSM8K"]["tokens_per_answer"] == 12


def test_without_task_arithmetic_there_are_no_columns_of_comparison(setting):
    assert "p, Holm" in summary_table(all_rows(setting, {}), setting.suite).head
    suite = replace(setting.suite, methods={name: FULL.methods[name] for name in ("model_soup", "dare")})
    table = summary_table(all_rows(replace(setting, suite=suite), {}), suite)
    assert table.head[-1] == "peak memory"
    assert {len(cells) for cells in table.rows} == {len(table.head)}
    assert "Holm" not in " ".join(table.remarks)


def test_a_page_shows_the_tables(setting):
    write_tables(setting, {})
    page = (setting.results_dir / "tables" / "mergebench.html").read_text()
    assert "<title>MergeBench</title>" in page
    assert "<h2>MergeBench</h2>" in page and "<h2>MergeBench: data sets</h2>" in page


def test_costs_of_merges_are_shown(setting):
    costs = {"Llama-3.2-3B/dare/merge": {"command": "", "seconds": 12.5, "peak_bytes": 2_500_000_000}}
    write_tables(setting, costs)
    text = (setting.results_dir / "tables" / "mergebench.md").read_text()
    assert "12.5" in text
    assert "2.50 GB" in text


def test_safety_is_read_from_its_own_report(setting):
    report = {
        "wildguardtest": {"micro harm (lower)": 0.25},
        "harmbench": {"micro ASR (lower)": 0.5},
        "do_anything_now": {"macro ASR": 0.75},
        "xstest": {"overall_accuracy": 0.9},
    }
    for subject in ("safety", "dare"):
        folder = setting.folder(setting.suite.bases[0], subject)
        folder.mkdir(exist_ok=True)
        (folder / "safety_eval.json").write_text(json.dumps(report))
    dare = rows_by_subject(setting)["dare"]
    assert dare.domains["safety"].value == pytest.approx((0.75 + 0.5 + 0.25 + 0.9) / 4)
    assert "safety" in dare.compared_domains
    assert dare.relative.value == pytest.approx((4 / 40 + 0 + 2 / 40 + 1) / 4)


def test_a_task_that_has_not_run_is_named(setting):
    row = rows_by_subject(setting)["base"]
    assert row.scores["HumanEval+"].value is None
    assert row.scores["HumanEval+"].note == "human_eval has not run"
    assert "human_eval has not run" in markdown([sets_table([row], setting.suite)])


def test_evalplus_results_are_read_and_missing_ones_named(setting):
    base = setting.suite.bases[0]
    root = setting.folder(base, "coding")
    samples = root / "save_gen_codes_results" / "single_model" / "human_eval" / "coding.evalplus.jsonl"
    samples.parent.mkdir(parents=True)
    command = f"evalplus.evaluate --dataset humaneval --samples {samples}"
    record = {"examples": 164, "files": [], "raw_generations": str(root / "raw.jsonl"), "evalplus_command": command}
    path = root / "save_scores" / "single_model" / "coding.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"human_eval": record}))
    assert evalplus_commands(setting.results_dir) == [command]
    assert command in rows_by_subject(setting)["specialists"].scores["HumanEval+"].note

    passed, failed = {"base_status": "pass", "plus_status": "pass"}, {"base_status": "pass", "plus_status": "fail"}
    results = {"eval": {f"HumanEval/{number}": [failed if number else passed] for number in range(4)}}
    samples.with_name("coding.evalplus_eval_results.json").write_text(json.dumps(results))
    assert evalplus_commands(setting.results_dir) == []
    assert rows_by_subject(setting)["specialists"].scores["HumanEval+"].value == 0.25
