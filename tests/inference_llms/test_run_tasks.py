"""Runs: completions kept as they come, taken up after a kill, never mixed with another run's; replay."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_llms.run_tasks import ModelSource, ModelTasks, ReplaySource, load_task_examples, run_tasks
from tests.inference_llms.support import ROOT, read_json_lines, write_rows
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import locked

NAME = "mask_merging/average_merging/mask_0.2_0.2_rescale_True"


class Adder:
    """An engine that adds the two numbers of a question, the last prompt first, and counts what it is asked."""

    def __init__(self, dies_after: int | None = None, seconds_each: float = 0.0):
        self.asked, self.calls, self.closed = [], 0, 0
        self.dies_after, self.seconds_each = dies_after, seconds_each

    def complete(self, prompts, sampling):
        self.calls += 1
        for done, position in enumerate(reversed(range(len(prompts)))):
            if done == self.dies_after:
                raise RuntimeError("the engine died")
            time.sleep(self.seconds_each)
            self.asked.append(prompts[position])
            question = prompts[position].split("\n\n### Instruction:\n")[1].split("?")[0]
            yield position, f" The answer is: {sum(map(int, question.split('+')))}"

    def close(self):
        self.closed += 1


def source(engine: Adder, fingerprint: str = "f" * 64, weights: str | None = None) -> ModelSource:
    return ModelSource("transformers", "some/model", fingerprint, weights or fingerprint, lambda: engine)


def no_engine() -> ModelSource:
    def refuse():
        raise AssertionError("an engine was opened though nothing was missing")

    return ModelSource("transformers", "some/model", "f" * 64, "f" * 64, refuse)


def run(examples, places, source, overwrite=False):
    return run_tasks([ModelTasks(examples, source)], places, overwrite)


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [{"question": f"{n}+{n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    write_rows(tmp_path / "data/gsm8k_test.jsonl", rows)
    write_rows(
        tmp_path / "data/MATH_test.jsonl",
        [{"instruction": f"{n}+1?", "output": f"\\boxed{{{n + 1}}}"} for n in range(5)],
    )
    return tmp_path / "data"


@pytest.fixture
def places(tmp_path) -> OutputPlaces:
    return OutputPlaces(tmp_path / "out", "instruct_math", NAME)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tasks_of_one_model_share_one_engine_which_is_closed_and_all_prompts_go_at_once(data, places):
    engine = Adder()
    scores = run(load_task_examples(["gsm8k", "MATH"], data, 0, None), places, source(engine))
    assert (engine.calls, engine.closed, len(engine.asked)) == (2, 1, 17)
    assert scores["gsm8k"]["accuracy"] == scores["MATH"]["accuracy"] == 1.0
    assert json.loads(places.scores().read_text()) == scores
    rows = read_json_lines(places.raw_generations("gsm8k"))
    assert sorted(row["id"] for row in rows) == list(range(12))
    assert all(list(row) == ["id", "prompt", "completion", "time", "cut_off"] for row in rows)
    assert places.scores().parent.name == "average_merging" and places.scores().name.endswith("True.json")


def test_an_engine_that_dies_is_closed_and_the_next_run_asks_only_what_is_missing(data, places):
    examples = load_task_examples(["gsm8k"], data, 0, None)
    dying = Adder(dies_after=5)
    with pytest.raises(RuntimeError, match="died"):
        run(examples, places, source(dying))
    assert dying.closed == 1
    assert len(read_json_lines(places.raw_generations("gsm8k"))) == 5
    assert not places.scores().exists()
    second = Adder()
    scores = run(examples, places, source(second))
    assert len(second.asked) == 7 and not set(second.asked) & set(dying.asked)
    assert scores["gsm8k"]["accuracy"] == 1.0
    assert run(examples, places, no_engine()) == scores


def test_a_half_written_last_line_is_dropped_and_its_example_asked_again(data, places):
    examples = load_task_examples(["gsm8k"], data, 0, None)
    run(examples, places, source(Adder()))
    path = places.raw_generations("gsm8k")
    whole, rows = path.read_bytes(), read_json_lines(path)
    for cut in (1, 2, 30):
        path.write_bytes(whole[:-cut])
        engine = Adder()
        run(examples, places, source(engine))
        assert len(engine.asked) == 1
        assert [row | {"time": 0} for row in read_json_lines(path)] == [row | {"time": 0} for row in rows]


def test_a_run_killed_while_generating_is_finished_by_the_next(data, places):
    program = (
        "from pathlib import Path\n"
        "from inference_llms.run_tasks import load_task_examples\n"
        "from tests.inference_llms.test_run_tasks import Adder, run, source\n"
        "from utils.output_places import OutputPlaces\n"
        f"examples = load_task_examples(['gsm8k'], Path({str(data)!r}), 0, None)\n"
        f"places = OutputPlaces(Path({str(places.root)!r}), {places.tasks!r}, {places.name!r})\n"
        "run(examples, places, source(Adder(seconds_each=0.2)))\n"
    )
    path = places.raw_generations("gsm8k")
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        patience = time.monotonic() + 60
        while not (path.is_file() and path.read_bytes().count(b"\n") >= 3):
            assert child.poll() is None and time.monotonic() < patience
            time.sleep(0.02)
        with pytest.raises(UserError, match=r"gsm8k\.jsonl: another process \(\d+ on .*\) is at work there"):
            run(load_task_examples(["gsm8k"], data, 0, None), places, source(Adder()))
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    kept = path.read_bytes().count(b"\n")
    assert 3 <= kept < 12
    engine = Adder()
    scores = run(load_task_examples(["gsm8k"], data, 0, None), places, source(engine))
    assert len(engine.asked) == 12 - kept
    assert scores["gsm8k"]["accuracy"] == 1.0


def test_a_second_run_is_refused_before_it_opens_an_engine(data, places):
    examples = load_task_examples(["gsm8k", "MATH"], data, 0, None)
    with locked(places.raw_generations("MATH")):
        before = files_below(places.root)
        with pytest.raises(UserError, match=r"MATH\.jsonl: another process"):
            run(examples, places, no_engine())
        assert files_below(places.root) == before
    assert not places.root.exists()


def test_runs_that_end_at_once_keep_each_others_scores(data, places):
    def add(task: str) -> None:
        for _ in range(5):
            run(load_task_examples([task], data, 0, None), places, source(Adder()))

    with ThreadPoolExecutor() as pool:  # a lock keeps two threads apart as it does two processes
        for _ in pool.map(add, ("gsm8k", "MATH")):
            pass
    assert json.loads(places.scores().read_text()).keys() == {"gsm8k", "MATH"}


def test_scores_of_another_model_that_came_meanwhile_are_kept(data, places):
    class Slow(Adder):
        def complete(self, prompts, sampling):
            run(load_task_examples(["MATH"], data, 0, None), places, source(Adder(), "e" * 64))
            yield from super().complete(prompts, sampling)

    with pytest.raises(UserError, match=r"True\.json holds the results of another model \(MATH\)"):
        run(load_task_examples(["gsm8k"], data, 0, None), places, source(Slow()))
    assert list(json.loads(places.scores().read_text())) == ["MATH"]


def test_a_full_disk_is_reported_with_the_file_and_a_rerun_resumes(data, places, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    long = [{"question": f"{n:0300}+{n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    write_rows(data / "gsm8k_test.jsonl", long)  # two pages of memory with the completions, where one is free
    try:
        examples = load_task_examples(["gsm8k"], data, 0, None)
        full = OutputPlaces(disk, "a", "b")
        with pytest.raises(OSError, match="No space left") as error:
            run(examples, full, source(Adder()))
        assert error.value.filename == str(full.raw_generations("gsm8k"))
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        engine = Adder()
        assert run(examples, full, source(engine))["gsm8k"]["accuracy"] == 1.0
        assert 0 < len(engine.asked) < 12
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_reported_before_an_engine_opens(data, tmp_path):
    place = tmp_path / "archive"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a file system takes root's rights")
    try:
        with pytest.raises(OSError, match="Read-only file system") as error:
            run(load_task_examples(["gsm8k"], data, 0, None), OutputPlaces(place / "out", "a", "b"), no_engine())
        assert error.value.filename.startswith(str(place))
    finally:
        subprocess.run(["umount", place], check=True)


def test_another_models_results_are_neither_mixed_nor_overwritten_unless_asked(data, places):
    examples = load_task_examples(["gsm8k"], data, 0, None)
    run(examples, places, source(Adder()))
    before = files_below(places.root)
    with pytest.raises(UserError, match=r"gsm8k\.jsonl holds the results of another run .*--overwrite"):
        run(examples, places, source(Adder(), "e" * 64))
    places.raw_generations("gsm8k").unlink()
    with pytest.raises(UserError, match=r"True\.json holds the results of another run .*--output_dir"):
        run(examples, places, source(Adder(), "e" * 64))
    places.raw_generations("gsm8k").write_bytes(before[f"save_raw_generations/instruct_math/{NAME}/gsm8k.jsonl"])
    assert files_below(places.root) == before
    engine = Adder()
    run(examples, places, source(engine, "e" * 64), overwrite=True)
    assert len(engine.asked) == 12
    assert len(read_json_lines(places.raw_generations("gsm8k"))) == 12
    run(examples, places, source(Adder(), "e" * 64))


def test_completions_of_another_data_set_are_not_taken_for_this_ones(data, places):
    run(load_task_examples(["gsm8k"], data, 0, None), places, source(Adder()))
    write_rows(data / "gsm8k_test.jsonl", [{"question": "7+7?", "answer": "#### 14"}])
    with pytest.raises(UserError, match=r"line 1: id 11 .*another data set"):
        run(load_task_examples(["gsm8k"], data, 0, None), places, source(Adder()))


def test_a_broken_line_amid_the_rows_is_named(data, places):
    examples = load_task_examples(["gsm8k"], data, 0, None)
    run(examples, places, source(Adder()))
    path = places.raw_generations("gsm8k")
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"gsm8k\.jsonl line 1 lacks the id"):
        run(examples, places, no_engine())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "backend: field required"),
        ('{"backend": 1}', "backend: input should be"),
        ('{"backend": "", "weights_fingerprint": []}', "weights_f"),
    ],
)
def test_a_damaged_identity_is_told(data, places, content, told):
    examples = load_task_examples(["gsm8k"], data, 0, None)
    run(examples, places, source(Adder()))
    places.raw_generations("gsm8k").with_name("gsm8k.identity.json").write_text(content)
    with pytest.raises(UserError, match=rf"{told}.*; remove it together with gsm8k\.jsonl"):
        run(examples, places, no_engine())


def test_a_slice_asks_that_slice_and_the_whole_takes_its_rows_up(data, places):
    engine = Adder()
    scores = run(load_task_examples(["gsm8k"], data, 2, 6), places, source(engine))
    assert scores["gsm8k"]["examples"] == 4
    assert sorted(row["id"] for row in read_json_lines(places.raw_generations("gsm8k"))) == [2, 3, 4, 5]
    engine = Adder()
    scores = run(load_task_examples(["gsm8k"], data, 0, 100), places, source(engine))
    assert len(engine.asked) == 8 and scores["gsm8k"]["examples"] == 12


def test_slices_by_several_jobs_add_up_and_none_shrinks_the_results(data, places):
    for start, end, known in ((0, 3, 3), (8, 10, 5), (0, 12, 12), (4, 6, 12)):
        scores = run(load_task_examples(["gsm8k"], data, start, end), places, source(Adder()))
        assert (scores["gsm8k"]["examples"], scores["gsm8k"]["accuracy"]) == (known, 1.0)
    scores = run(load_task_examples(["gsm8k"], data, 4, 6), places, source(Adder()), overwrite=True)
    assert scores["gsm8k"]["examples"] == 2


def test_a_replayed_slice_is_scored_alone(data, places, tmp_path):
    run(load_task_examples(["gsm8k"], data, 0, None), places, source(Adder()))
    replay = ReplaySource("some/model", places.raw_generations("gsm8k").parent)
    scores = run(load_task_examples(["gsm8k"], data, 4, 6), OutputPlaces(tmp_path / "other", "a", "b"), replay)
    assert scores["gsm8k"]["examples"] == 2


def test_a_cap_reaches_the_engine_the_record_and_the_identity(data, places):
    class Recorder(Adder):
        def complete(self, prompts, sampling):
            self.sampling = sampling
            return super().complete(prompts, sampling)

    engine = Recorder()
    capped = load_task_examples(["gsm8k"], data, 0, None, 7)
    (score,) = run(capped, places, source(engine)).values()
    assert engine.sampling.max_tokens == 7 == score["identity"]["sampling"]["max_tokens"]
    with pytest.raises(UserError, match="another sampling"):
        run(load_task_examples(["gsm8k"], data, 0, None), places, no_engine())
    longer = load_task_examples(["gsm8k"], data, 0, None, 10**6)["gsm8k"].task
    assert longer.sampling == load_task_examples(["gsm8k"], data, 0, None)["gsm8k"].task.sampling


def test_a_slice_of_nothing_is_refused(data):
    with pytest.raises(UserError, match=r"--start_index 12: that leaves none of the 12 examples of gsm8k"):
        load_task_examples(["gsm8k"], data, 12, None)


def test_two_models_of_one_name_do_not_share_a_scores_file(data, places):
    gsm8k, math = (load_task_examples([task], data, 0, None) for task in ("gsm8k", "MATH"))
    run(gsm8k, places, source(Adder()))
    before = files_below(places.root)
    with pytest.raises(UserError, match=r"True\.json holds the results of another model \(gsm8k\); .*--overwrite"):
        run(math, places, source(Adder(), "e" * 64))
    assert files_below(places.root) == before
    run(math, places, source(Adder(), "e" * 64), overwrite=True)
    assert list(json.loads(places.scores().read_text())) == ["MATH"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_scores_file_that_is_none_is_told_before_the_engine_is_opened(data, places, overwrite):
    places.scores().parent.mkdir(parents=True)
    for text, told in (("{", "is not JSON"), ("[]", "does not hold scores by task")):
        places.scores().write_text(text)
        with pytest.raises(UserError, match=told):
            run(load_task_examples(["gsm8k"], data, 0, None), places, no_engine(), overwrite)
    places.scores().write_text('{"gsm8k": {"identity": []}}')
    if not overwrite:
        with pytest.raises(UserError, match="nothing says which"):
            run(load_task_examples(["gsm8k"], data, 0, None), places, no_engine())


def test_folders_of_one_merge_share_a_scores_file_in_the_order_of_the_tasks(data, places):
    """They differ in their tokenizer, so in their fingerprint, and have the same weights."""
    gsm8k, math = (load_task_examples([task], data, 0, None) for task in ("gsm8k", "MATH"))
    run(math, places, source(Adder(), "e" * 64, weights="w"))
    run(gsm8k, places, source(Adder(), "f" * 64, weights="w"))
    assert list(json.loads(places.scores().read_text())) == ["gsm8k", "MATH"]


def test_what_is_wrong_with_the_last_models_tasks_is_told_before_the_first_is_run(data, places):
    gsm8k, math = (load_task_examples([task], data, 0, None) for task in ("gsm8k", "MATH"))
    run(math, places, source(Adder(), "e" * 64, weights="w"))
    before = files_below(places.root)
    write_rows(data / "MATH_test.jsonl", [{"instruction": "7+7?", "output": "\\boxed{14}"}])
    math = load_task_examples(["MATH"], data, 0, None)
    first, second = Adder(), Adder()
    work = [ModelTasks(gsm8k, source(first, weights="w")), ModelTasks(math, source(second, "e" * 64, weights="w"))]
    with pytest.raises(UserError, match="another data set"):
        run_tasks(work, places)
    assert first.calls == second.calls == 0
    assert files_below(places.root) == before


def test_a_killed_runs_own_folder_is_replayed_without_its_half_written_line(data, places, tmp_path):
    run(load_task_examples(["gsm8k"], data, 0, 6), places, source(Adder()))
    path = places.raw_generations("gsm8k")
    path.write_bytes(path.read_bytes()[:-9])
    whole_rows = load_task_examples(["gsm8k"], data, 1, 6)
    other = OutputPlaces(tmp_path / "other", "a", "b")
    assert run(whole_rows, other, ReplaySource("m", path.parent))["gsm8k"]["examples"] == 5
    with pytest.raises(UserError, match="no completion of id 0"):
        run(load_task_examples(["gsm8k"], data, 0, 6), other, ReplaySource("m", path.parent))
    path.with_name("gsm8k.identity.json").unlink()
    with pytest.raises(UserError, match="line 6 is not JSON"):
        run(whole_rows, other, ReplaySource("m", path.parent))


def test_a_later_run_of_another_task_adds_its_scores(data, places):
    run(load_task_examples(["gsm8k"], data, 0, None), places, source(Adder()))
    run(load_task_examples(["MATH"], data, 0, None), places, source(Adder()))
    assert json.loads(places.scores().read_text()).keys() == {"gsm8k", "MATH"}


def test_replay_of_the_runs_own_folder_scores_the_same_and_leaves_it_as_it_is(data, places):
    examples = load_task_examples(["gsm8k", "MATH"], data, 0, None)
    scores = run(examples, places, source(Adder()))
    before = files_below(places.root)
    replay = ReplaySource("some/model", places.raw_generations("gsm8k").parent)
    assert run(examples, places, replay) == scores
    assert run(examples, places, replay, overwrite=True) == scores
    assert files_below(places.root) == before


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"id": n, "completion": ""} for n in range(11)], r"gsm8k\.jsonl has no completion of id 11"),
        ([{"id": 0, "completion": ""}] * 2, r"line 2: the id 0 stands there twice"),
        ([{"id": 12, "completion": ""}], r"line 1: no example of the set has the id 12"),
        ([{"id": "0", "completion": ""}], r"line 1: no example of the set has the id '0'"),
        ([{"id": 0}], r"line 1 lacks the field 'completion'"),
        ([{"completion": ""}], r"line 1 lacks the field 'id'"),
        ([{"id": 0, "completion": "", "prompt": "another"}], r"line 1: the completion of id 0 .*another prompt"),
        (None, r"gsm8k\.jsonl does not exist"),
    ],
)
def test_replay_names_the_file_and_row_at_fault_and_leaves_nothing(data, places, tmp_path, rows, complaint):
    if rows is not None:
        write_rows(tmp_path / "replay/gsm8k.jsonl", rows)
    with pytest.raises(UserError, match=complaint):
        run(load_task_examples(["gsm8k"], data, 0, None), places, ReplaySource("some/model", tmp_path / "replay"))
    assert not places.root.exists()


def test_empty_completions_score_nothing(data, places, tmp_path):
    for task, number in (("gsm8k", 12), ("MATH", 5)):
        write_rows(tmp_path / f"replay/{task}.jsonl", [{"id": n, "completion": ""} for n in range(number)])
    examples = load_task_examples(["gsm8k", "MATH"], data, 0, None)
    scores = run(examples, places, ReplaySource("some/model", tmp_path / "replay"))
    for score in scores.values():
        assert score["accuracy"] == score["lenient_accuracy"] == 0.0
