"""LiveBench is called on the answers of a run, and its own folder stays as it is.

LiveBench itself does not install beside this project's versions: a script with its files, options and checks stands in.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference_llms.evaluators.guard import check_guard
from inference_llms.tasks.livebench import releases_of
from ood_robust_inference import main as ood_robust_inference
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluate import NOTES, evaluate, files_to_judge
from scripts.paper_tables.evaluator_results import livebench_judgments, read_livebench
from scripts.paper_tables.judge_livebench import judge_livebench
from tests.inference_llms.support import ROOT, read_json_lines, write_rows
from utils.errors import UserError

ZOO = ROOT / "scripts" / "tiny_zoo"
TASKS = ("story_generation", "summarize")
# An answer is right that says so. Ids are lower-cased, every model named must have answered every question, judgments
# are appended and the last of each question and model is kept: as LiveBench does.
JUDGE = """
import argparse, glob, json, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--bench-name")
parser.add_argument("--model", nargs="+")
parser.add_argument("--livebench-release-option", default="2025-04-25")
parser.add_argument("--question-source", default="huggingface")
options = parser.parse_args()
assert options.question_source == "jsonl", "no network"
for file in glob.glob(f"data/{options.bench_name}/**/question.jsonl", recursive=True):
    folder = os.path.dirname(file)
    questions = [json.loads(line) for line in open(file)]
    questions = [q for q in questions if q["livebench_release_date"] <= options.livebench_release_option]
    answers = {}
    for path in glob.glob(f"{folder}/model_answer/*.jsonl"):
        rows = [json.loads(line) for line in open(path)]
        answers[os.path.basename(path)[:-6].lower()] = {row["question_id"]: row for row in rows}
    models = [name.lower() for name in options.model or answers]
    for model in models:
        for question in questions:
            assert question["question_id"] in answers[model], f"Missing model {model}'s answer"
    os.makedirs(f"{folder}/model_judgment", exist_ok=True)
    judged = f"{folder}/model_judgment/ground_truth_judgment.jsonl"
    with open(judged, "a") as out:
        for model in models:
            for q in questions:
                right = "right" in answers[model][q["question_id"]]["choices"][0]["turns"][0]
                row = {"question_id": q["question_id"], "task": q["task"], "model": model, "score": float(right),
                       "turn": 1, "tstamp": time.time()}
                out.write(json.dumps(row) + "\\n")
    kept = {(json.loads(line)["question_id"], json.loads(line)["model"]): line for line in open(judged)}
    open(judged, "w").writelines(kept[key] for key in sorted(kept))
"""


@pytest.fixture
def livebench(tmp_path, monkeypatch) -> Path:
    """LiveBench's folder, where another model's answers lie, half of them, and its judgments."""
    folder = tmp_path / "LiveBench" / "livebench"
    for category, task in [("instruction_following", name) for name in TASKS] + [("coding", "LCB_generation")]:
        place = folder / "data/live_bench" / category / task
        write_rows(place / "model_answer/others.jsonl", [{"question_id": "q", "choices": [{"turns": ["right"]}]}])
        write_rows(place / "model_judgment/ground_truth_judgment.jsonl", [others_judgment(1)])
    (folder / "gen_ground_truth_judgment.py").write_text(JUDGE)
    (folder / "show_livebench_result.py").write_text("")
    monkeypatch.setenv("LIVEBENCH_DIR", str(folder))
    return folder


def others_judgment(score: float) -> dict:
    return {"question_id": "q", "task": "t", "model": "others", "score": score, "turn": 1, "tstamp": 1.0}


def answer(tmp_path: Path, model_id: str, completion: str = "right", task: str = "instruction_following", *options):
    """A run that answers the same to every question of the tiny models' set."""
    files = sorted((ZOO / "data" / "live_bench" / task).glob("*/question.jsonl"))
    rows = [row for file in files for row in read_json_lines(file)]
    replay = tmp_path / f"replay_{model_id}"
    write_rows(replay / f"{task}.jsonl", [{"id": row["question_id"], "completion": completion} for row in rows])
    words = ["--load_model_path", ZOO / "code", "--backend", "replay", "--replay_from", replay, "--model_id", model_id]
    words += ["--output_dir", tmp_path / "results" / model_id, "--data_dir", ZOO / "data", "--evaluate_task", task]
    ood_robust_inference([str(word) for word in (*words, *options)])


def judge(tmp_path: Path) -> dict[str, str]:
    """Why answers were not judged, by model id."""
    evaluate(Setting(tmp_path / "results", "tiny", None, "transformers", None), allow_code_execution=True)
    notes = json.loads((tmp_path / "results" / NOTES).read_text())
    return {Path(key).stem: note for key, note in notes.items()}


def files_of(tmp_path: Path, model_id: str) -> list[Path]:
    return sorted((tmp_path / "results").rglob(f"model_answer/{model_id}.jsonl"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_our_answers_are_judged_beside_a_model_that_left_questions_out(livebench, tmp_path):
    answer(tmp_path, "average_TIES")
    answer(tmp_path, "wrong", "no")
    assert judge(tmp_path) == {}
    found = read_livebench(files_of(tmp_path, "average_TIES"))
    assert (found.score, found.examples) == (1.0, 6)
    assert found.command == (
        "python gen_ground_truth_judgment.py --bench-name m3_average_TIES/instruction_following "
        "--livebench-release-option 2024-11-25 --question-source jsonl --model average_TIES"
    )
    assert read_livebench(files_of(tmp_path, "wrong")).score == 0


def test_nothing_in_livebenchs_folder_changes(livebench, tmp_path):
    theirs = livebench / "data/live_bench/instruction_following/summarize/question.jsonl"
    write_rows(theirs, [{"question_id": "theirs", "livebench_release_date": "2024-11-25", "task": "summarize"}])
    before = contents(livebench)
    answer(tmp_path, "m")
    assert judge(tmp_path) == {}
    assert contents(livebench) == before
    ours = livebench_judgments(files_of(tmp_path, "m")[1])
    assert {row["model"] for row in read_json_lines(ours)} == {"m"}


def test_what_was_judged_elsewhere_is_not_lost_when_more_is_judged(livebench, tmp_path):
    answer(tmp_path, "m")
    judge(tmp_path)
    (file, _) = files_of(tmp_path, "m")
    elsewhere = livebench_judgments(file)
    write_rows(
        elsewhere, [*({**row, "score": 0.5, "tstamp": 0} for row in read_json_lines(elsewhere)), others_judgment(1)]
    )
    assert judge(tmp_path) == {}
    assert {row["model"]: row["score"] for row in read_json_lines(elsewhere)} == {"others": 1, "m": 1.0}


def test_answers_whose_questions_are_gone_are_not_judged(livebench, tmp_path):
    answer(tmp_path, "m")
    (file, _) = files_of(tmp_path, "m")
    (file.parents[1] / "questions/m.jsonl").unlink()
    (note,) = judge(tmp_path).values()
    assert note.endswith("the questions of m.jsonl, is missing; run the command of its answers again")


def test_a_misspelt_folder_is_named_and_not_made(livebench, tmp_path, monkeypatch):
    monkeypatch.setenv("LIVEBENCH_DIR", str(tmp_path / "LiveBensh"))
    answer(tmp_path, "m")
    (note,) = judge(tmp_path).values()
    assert note.startswith(f"{tmp_path / 'LiveBensh'} holds no gen_ground_truth_judgment.py") and "\n" not in note
    assert not (tmp_path / "LiveBensh").exists()


def test_a_slice_is_judged_on_its_own_questions(livebench, tmp_path):
    answer(tmp_path, "a_part", "right", "instruction_following", "--end_index", "2")
    assert judge(tmp_path) == {}
    found = read_livebench(files_of(tmp_path, "a_part"))
    assert (found.score, found.examples) == (1, 2)


def test_every_answer_is_judged_in_a_release_that_has_its_question():
    dates = {"old": ("2024-06-24", "2024-11-25"), "kept": ("2024-06-24", ""), "new": ("2024-11-25", "")}
    rows = [{"livebench_release_date": out, "livebench_removal_date": gone} for out, gone in dates.values()]
    assert releases_of(rows, None) == ["2024-08-31", "2024-11-25"]
    assert releases_of(rows[1:], None) == ["2024-11-25"]
    assert releases_of(rows[1:2], "2024-07-26") == ["2024-07-26"]


def test_a_program_that_stops_the_judge_scores_zero_alone(livebench, tmp_path):
    try:
        check_guard()
    except UserError as error:
        pytest.skip(str(error))
    answers = "[open(path).read() for path in glob.glob('data/**/m.jsonl', recursive=True)]"
    stop = f"if any('stop' in text for text in {answers}): os.kill(os.getpid(), 9)"
    (livebench / "gen_ground_truth_judgment.py").write_text(f"import glob, os\n{stop}\n{JUDGE}")
    answer(tmp_path, "m", "right", "coding")
    (path, _) = files_of(tmp_path, "m")
    path.write_text(path.read_text().replace('"right"', '"stop"', 1))
    assert judge(tmp_path) == {}
    found = read_livebench(files_of(tmp_path, "m"))
    assert sorted(found.values) == [0] + [1] * (found.examples - 1)


def test_programs_are_judged_in_the_guard(livebench, tmp_path):
    try:
        check_guard()
    except UserError as error:
        pytest.skip(str(error))
    network = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 5)\nexcept OSError as e: assert e.errno == 101"
    )
    (livebench / "gen_ground_truth_judgment.py").write_text(f"{network}\nelse: 1 / 0\n{JUDGE}")
    answer(tmp_path, "m", "right", "coding")
    assert judge(tmp_path) == {}
    assert read_livebench(files_of(tmp_path, "m")).score == 1


def test_the_command_on_the_screen_does_what_the_call_does(livebench, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.delenv("LIVEBENCH_DIR")
    answer(tmp_path, "m")
    assert "not installed" in judge(tmp_path)["m"]
    command = caplog.messages[-1].strip()
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)

    def type_it(folder):
        return subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env={"PATH": f"{interpreter.parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    (tmp_path / "elsewhere").mkdir()
    assert type_it(tmp_path / "elsewhere").returncode != 0 and not list((tmp_path / "elsewhere").iterdir())
    done = type_it(livebench)
    assert done.returncode == 0, done.stderr
    found = read_livebench(files_of(tmp_path, "m"))
    assert (found.score, found.examples) == (1.0, 6)
    (item,) = files_to_judge(tmp_path / "results")
    monkeypatch.setenv("LIVEBENCH_DIR", str(livebench))
    judge_livebench("instruction_following", [item])
    assert read_livebench(files_of(tmp_path, "m")).command in command
