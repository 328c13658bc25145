"""Runs: completions are stored as they come, resumed, never mixed with those of another run, and replayed."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_llms.run_tasks import ModelSource, ModelTasks, ReplaySource, TaskExamples, load_task_examples, run_tasks
from inference_llms.tasks import TASKS
from tests.inference_llms.support import MadeUpEngine, read_json_lines, write_rows
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import locked

NAME = "mask_merging/average_merging/mask_0.2_0.2_rescale_True"


class Adder(MadeUpEngine):
    """Adds the two numbers of a question."""

    def __init__(self, dies_after: int | None = None):
        super().__init__(add, dies_after)


def add(prompt: str) -> str:
    question = prompt.split("\n\n### Instruction:\n")[1].split("?")[0]
    return f" The answer is: {sum(map(int, question.split('+')))}"


def source(engine: Adder | None = None, model: str = "f", weights: str | None = None) -> ModelSource:
    """Without an engine, one that must not be opened."""

    def open_engine() -> Adder:
        assert engine is not None, "an engine was opened though nothing was missing"
        return engine

    return ModelSource("transformers", "some/model", model * 64, weights or model * 64, open_engine)


def run(examples: dict[str, TaskExamples], places: OutputPlaces, source, overwrite: bool = False) -> dict:
    return run_tasks([ModelTasks(examples, source)], places, overwrite)


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [{"question": f"{n}+{n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    write_rows(tmp_path / "data/gsm8k_test.jsonl", rows)
    rows = [{"instruction": f"{n}+1?", "output": f"\\boxed{{{n + 1}}}"} for n in range(5)]
    write_rows(tmp_path / "data/MATH_test.jsonl", rows)
    return tmp_path / "data"


@pytest.fixture
def gsm8k(data) -> dict[str, TaskExamples]:
    return load_task_examples([TASKS["gsm8k"]], data, 0, None)


@pytest.fixture
def math(data) -> dict[str, TaskExamples]:
    return load_task_examples([TASKS["MATH"]], data, 0, None)


@pytest.fixture
def places(tmp_path) -> OutputPlaces:
    return OutputPlaces(tmp_path / "out", "instruct_math", NAME)


def scores_in(places: OutputPlaces) -> dict:
    return json.loads(places.scores().read_text())


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tasks_of_one_model_share_one_engine_with_one_call_each(gsm8k, math, places):
    engine = Adder()
    work, options = [ModelTasks(gsm8k | math, source(engine))], {"end_index": 12}
    scores = run_tasks(work, places, command="python x", options=options)
    assert (engine.calls, engine.closed, len(engine.prompts)) == (2, 1, 17)
    assert scores["gsm8k"]["accuracy"] == scores["MATH"]["accuracy"] == 1.0
    assert (scores["MATH"]["command"], scores["MATH"]["options"]) == ("python x", options)
    assert scores_in(places) == scores
    rows = read_json_lines(places.raw_generations("gsm8k"))
    assert sorted(row["id"] for row in rows) == list(range(12))
    assert all(list(row) == ["id", "prompt", "completion", "time", "cut_off", "tokens"] for row in rows)
    assert places.scores().parent.name == "average_merging" and places.scores().name.endswith("True.json")


def test_a_run_after_a_crash_completes_only_missing_examples(gsm8k, places):
    dying, second = Adder(dies_after=5), Adder()
    with pytest.raises(RuntimeError, match="died"):
        run(gsm8k, places, source(dying))
    assert dying.closed == 1 and not places.scores().exists()
    assert len(read_json_lines(places.raw_generations("gsm8k"))) == 5
    scores = run(gsm8k, places, source(second))
    assert len(second.prompts) == 7 and not set(second.prompts) & set(dying.prompts)
    assert scores["gsm8k"]["accuracy"] == 1.0
    assert run(gsm8k, places, source()) == scores


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_the_example_of_a_half_written_last_line_is_completed_again(gsm8k, places, cut):
    run(gsm8k, places, source(Adder()))
    path, engine = places.raw_generations("gsm8k"), Adder()
    rows = read_json_lines(path)
    path.write_bytes(path.read_bytes()[:-cut])
    run(gsm8k, places, source(engine))
    assert len(engine.prompts) == 1
    assert [row | {"time": 0} for row in read_json_lines(path)] == [row | {"time": 0} for row in rows]


def test_a_second_run_is_refused_before_it_opens_an_engine(gsm8k, math, places):
    with locked(places.raw_generations("MATH")):
        before = files_below(places.root)
        with pytest.raises(UserError, match=r"MATH\.jsonl: another process \(\d+ on .*\) is at work there"):
            run(gsm8k | math, places, source())
        assert files_below(places.root) == before
    assert not places.root.exists()


def test_simultaneous_runs_keep_each_others_scores(gsm8k, math, places):
    def add(examples: dict[str, TaskExamples]) -> None:
        for _ in range(5):
            run(examples, places, source(Adder()))

    with ThreadPoolExecutor() as pool:  # a lock keeps two threads apart as it does two processes
        list(pool.map(add, (math, gsm8k)))
    assert list(scores_in(places)) == ["gsm8k", "MATH"]


def test_scores_of_another_model_written_meanwhile_are_kept(gsm8k, math, places):
    class Slow(Adder):
        def complete(self, prompts, sampling):
            run(math, places, source(Adder(), "e"))
            yield from super().complete(prompts, sampling)

    with pytest.raises(UserError, match=r"True\.json holds the results of another model \(MATH\)"):
        run(gsm8k, places, source(Slow()))
    assert list(scores_in(places)) == ["MATH"]


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a small file system with these options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_full_disk_is_reported_with_the_file_and_a_rerun_resumes(data, disk):
    # Two pages of memory with the completions, and one is free.
    rows = [{"question": f"{n:0300}+{n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    write_rows(data / "gsm8k_test.jsonl", rows)
    examples = load_task_examples([TASKS["gsm8k"]], data, 0, None)
    full, engine = OutputPlaces(disk("size=12k"), "a", "b"), Adder()
    with pytest.raises(OSError, match="No space left") as error:
        run(examples, full, source(Adder()))
    assert error.value.filename == str(full.raw_generations("gsm8k"))
    disk("remount,size=1m")
    assert run(examples, full, source(engine))["gsm8k"]["accuracy"] == 1.0
    assert 0 < len(engine.prompts) < 12


def test_a_read_only_folder_is_reported_before_an_engine_opens(gsm8k, disk):
    folder = disk("ro")
    with pytest.raises(OSError, match="Read-only file system") as error:
        run(gsm8k, OutputPlaces(folder / "out", "a", "b"), source())
    assert error.value.filename.startswith(str(folder))


def test_another_models_results_are_replaced_only_with_overwrite(gsm8k, places):
    run(gsm8k, places, source(Adder()))
    raw = places.raw_generations("gsm8k")
    before, rows = files_below(places.root), raw.read_bytes()
    with pytest.raises(UserError, match=r"gsm8k\.jsonl holds the results of another run .*--overwrite"):
        run(gsm8k, places, source(Adder(), "e"))
    raw.unlink()
    with pytest.raises(UserError, match=r"True\.json holds the results of another run .*--output_dir"):
        run(gsm8k, places, source(Adder(), "e"))
    raw.write_bytes(rows)
    assert files_below(places.root) == before
    engine = Adder()
    run(gsm8k, places, source(engine, "e"), overwrite=True)
    assert len(engine.prompts) == len(read_json_lines(raw)) == 12
    run(gsm8k, places, source(model="e"))


def another_data_set(data: Path, path: Path) -> None:
    write_rows(data / "gsm8k_test.jsonl", [{"question": "7+7?", "answer": "#### 14"}])


def without_id(data: Path, path: Path) -> None:
    path.write_bytes(b"{}\n" + path.read_bytes())


def identity(text: str):
    return lambda data, path: path.with_name("gsm8k.identity.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_data_set, r"line 1: id 11 .*another data set"),
        (without_id, r"gsm8k\.jsonl line 1 lacks the id"),
        (lambda data, path: path.write_bytes(b"{\n" + path.read_bytes()), r"gsm8k\.jsonl line 1 is not JSON"),
        (identity("{"), r"is not JSON.*; remove it together with gsm8k\.jsonl"),
        (identity("[]"), r"is not a JSON object.*; remove it together with gsm8k\.jsonl"),
        (identity("{}"), r"backend: field required.*; remove it together with gsm8k\.jsonl"),
        (identity('{"backend": 1}'), r"backend: input should be.*; remove it together with gsm8k\.jsonl"),
        (identity('{"backend": "", "weights_fingerprint": []}'), r"weights_f.*; remove it together with gsm8k\.jsonl"),
    ],
)
def test_damaged_or_foreign_completions_are_named(gsm8k, data, places, spoil, message):
    run(gsm8k, places, source(Adder()))
    spoil(data, places.raw_generations("gsm8k"))
    with pytest.raises(UserError, match=message):
        run(load_task_examples([TASKS["gsm8k"]], data, 0, None), places, source())


def test_slices_accumulate_and_none_shrinks_the_results(data, places):
    for start, end, known, new in ((2, 6, 4, 4), (0, 3, 6, 2), (8, 10, 8, 2), (0, 100, 12, 4), (4, 6, 12, 0)):
        engine = Adder()
        scores = run(load_task_examples([TASKS["gsm8k"]], data, start, end), places, source(engine))
        assert (scores["gsm8k"]["examples"], scores["gsm8k"]["accuracy"]) == (known, 1.0)
        assert len(engine.prompts) == new
    scores = run(load_task_examples([TASKS["gsm8k"]], data, 4, 6), places, source(Adder()), overwrite=True)
    assert scores["gsm8k"]["examples"] == 2


def test_a_cap_reaches_the_engine_and_the_identity(gsm8k, data, places):
    engine = Adder()
    (score,) = run(load_task_examples([TASKS["gsm8k"].capped(7)], data, 0, None), places, source(engine)).values()
    assert engine.sampling.max_tokens == 7 == score["identity"]["sampling"]["max_tokens"]
    with pytest.raises(UserError, match="another sampling"):
        run(gsm8k, places, source())
    longer = load_task_examples([TASKS["gsm8k"].capped(10**6)], data, 0, None)
    assert longer["gsm8k"].task.sampling == gsm8k["gsm8k"].task.sampling


def test_two_models_of_one_name_do_not_share_a_scores_file(gsm8k, math, places):
    run(gsm8k, places, source(Adder()))
    before = files_below(places.root)
    with pytest.raises(UserError, match=r"True\.json holds the results of another model \(gsm8k\); .*--overwrite"):
        run(math, places, source(Adder(), "e"))
    assert files_below(places.root) == before
    run(math, places, source(Adder(), "e"), overwrite=True)
    assert list(scores_in(places)) == ["MATH"]


@pytest.mark.parametrize(
    ("text", "overwrite", "message"),
    [
        ("{", False, "is not JSON"),
        ("{", True, "is not JSON"),
        ("[]", False, "does not hold scores by task"),
        ('{"gsm8k": {"identity": []}}', False, "it does not say which"),
    ],
)
def test_a_damaged_scores_file_is_reported_before_the_engine_opens(gsm8k, places, text, overwrite, message):
    places.scores().parent.mkdir(parents=True)
    places.scores().write_text(text)
    with pytest.raises(UserError, match=message):
        run(gsm8k, places, source(), overwrite)


def test_folders_of_one_merge_share_a_scores_file_and_are_checked_first(gsm8k, math, data, places):
    """They differ in their tokenizer, so in their fingerprint, and have the same weights."""
    run(math, places, source(Adder(), "e", weights="w"))
    run(gsm8k, places, source(Adder(), "f", weights="w"))
    assert list(scores_in(places)) == ["gsm8k", "MATH"]
    before = files_below(places.root)
    write_rows(data / "MATH_test.jsonl", [{"instruction": "7+7?", "output": "\\boxed{14}"}])
    math = load_task_examples([TASKS["MATH"]], data, 0, None)
    work = [ModelTasks(gsm8k, source(weights="w")), ModelTasks(math, source(model="e", weights="w"))]
    with pytest.raises(UserError, match="another data set"):
        run_tasks(work, places)
    assert files_below(places.root) == before


def test_a_replay_of_raw_generations_scores_the_same(gsm8k, math, data, places, tmp_path):
    scores = run(gsm8k | math, places, source(Adder()))
    before = files_below(places.root)
    replay = ReplaySource("some/model", places.raw_generations("gsm8k").parent)
    for overwrite in (False, True):
        assert run(gsm8k | math, places, replay, overwrite) == scores
    assert files_below(places.root) == before
    part = run(load_task_examples([TASKS["gsm8k"]], data, 4, 6), OutputPlaces(tmp_path / "other", "a", "b"), replay)
    assert part["gsm8k"]["examples"] == 2


def test_a_replay_skips_the_half_written_line_of_a_killed_run(gsm8k, data, places, tmp_path):
    first = load_task_examples([TASKS["gsm8k"]], data, 0, 6)
    run(first, places, source(Adder()))
    path = places.raw_generations("gsm8k")
    path.write_bytes(path.read_bytes()[:-9])
    whole_rows, other = load_task_examples([TASKS["gsm8k"]], data, 1, 6), OutputPlaces(tmp_path / "other", "a", "b")
    assert run(whole_rows, other, ReplaySource("m", path.parent))["gsm8k"]["examples"] == 5
    with pytest.raises(UserError, match="no completion of id 0"):
        run(first, other, ReplaySource("m", path.parent))
    path.with_name("gsm8k.identity.json").unlink()
    with pytest.raises(UserError, match="line 6 is not JSON"):
        run(whole_rows, other, ReplaySource("m", path.parent))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": n, "completion": ""} for n in range(11)], r"gsm8k\.jsonl has no completion of id 11"),
        ([{"id": 0, "completion": ""}] * 2, r"line 2 repeats the id 0"),
        ([{"id": 12, "completion": ""}], r"line 1: no example of the set has the id 12"),
        ([{"id": "0", "completion": ""}], r"line 1: no example of the set has the id '0'"),
        ([{"id": 0}], r"line 1 lacks the field 'completion'"),
        ([{"completion": ""}], r"line 1 lacks the field 'id'"),
        ([{"id": 0, "completion": "", "prompt": "another"}], r"line 1: the completion of id 0 .*another prompt"),
        (None, r"gsm8k\.jsonl does not exist"),
    ],
)
def test_a_replay_names_the_faulty_row_and_writes_nothing(gsm8k, places, tmp_path, rows, message):
    if rows is not None:
        write_rows(tmp_path / "replay/gsm8k.jsonl", rows)
    with pytest.raises(UserError, match=message):
        run(gsm8k, places, ReplaySource("some/model", tmp_path / "replay"))
    assert not places.root.exists()
