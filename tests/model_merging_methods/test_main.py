"""The subcommands of python -m model_merging_methods: merge, diagnose, methods."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge_llms_instruct_math_code import main as main_job
from model_merging_methods.__main__ import main
from model_merging_methods.masks import MASKS
from model_merging_methods.methods import METHODS
from tests.commands import run_here

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "scripts" / "tiny_zoo"
MODELS = ["--pretrained_model", ZOO / "base", "--models", f"math={ZOO / 'math'}", f"chat={ZOO / 'instruct'}"]
MAGMAX = [*MODELS, "--merging_method_name", "magmax", "--scaling_coefficient", "0.5"]
DECLARED = {**METHODS, **MASKS}


def run(*words: object, expect: int = 0) -> str:
    """The standard output, or the standard error of a command that fails."""
    done = run_here(main, words)
    assert done.returncode == expect, done.stderr
    return done.stderr if expect else done.stdout


def contents(out: Path) -> dict[str, bytes]:
    """The files of all merged models, except records, which have times."""
    files = [path for path in (out / "save_merge_models").rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "merge_record.json"}


def test_merge_saves_what_the_main_job_saves(tmp_path):
    run("merge", *MAGMAX, "--output_dir", tmp_path / "merged")
    done = run_here(main_job, [*MAGMAX, "--merge_only", "--output_dir", tmp_path / "main_job"])
    assert done.returncode == 0, done.stderr
    merged = contents(tmp_path / "merged")
    assert merged == contents(tmp_path / "main_job")
    places = {str(Path(name).parent) for name in merged}
    assert places == {f"save_merge_models/math_chat/{role}/magmax_scaling_coefficient_0.5" for role in ("math", "chat")}


def test_merge_replaces_another_merge_only_with_overwrite(tmp_path):
    out = ("--output_dir", tmp_path)
    run("merge", *MAGMAX, *out)
    assert "already merged" in run("merge", *MAGMAX, *out)
    other = [word if word != f"chat={ZOO / 'instruct'}" else f"chat={ZOO / 'code'}" for word in MAGMAX]
    assert "--overwrite" in run("merge", *other, *out, expect=2)
    run("merge", *other, *out, "--overwrite")
    (record, _) = sorted(tmp_path.rglob("merge_record.json"))
    folders = {entry["role"]: Path(entry["folder"]).name for entry in json.loads(record.read_text())["inputs"]}
    assert folders["chat"] == "code"
    again = ("merge", "--from_record", record, "--output_dir", tmp_path / "again")
    run(*again)
    assert contents(tmp_path / "again") == contents(tmp_path)


def test_a_record_is_repeated_with_models_that_moved(tmp_path):
    run("merge", *MAGMAX, "--output_dir", tmp_path / "merged")
    (record, _) = sorted((tmp_path / "merged").rglob("merge_record.json"))
    moved = shutil.copytree(ZOO / "instruct", tmp_path / "moved")
    run("merge", "--from_record", record, "--models", f"chat={moved}", "--output_dir", tmp_path / "again")
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "merged").keys()
    unknown = ("merge", "--from_record", record, "--models", f"other={moved}")
    assert "this merge has no other model" in run(*unknown, expect=2)


def test_merge_checks_inputs_and_writes_nothing(tmp_path):
    done = run_here(main, ["merge", *MAGMAX, "--check", "--output_dir", tmp_path])
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_diagnose_is_a_subcommand(tmp_path):
    models = ("--models", ZOO / "math", ZOO / "code")
    run("diagnose", "--pretrained_model", ZOO / "base", *models, "--output_dir", tmp_path)
    assert (tmp_path / "save_model_diagnoses" / "math_code" / "diagnosis.json").is_file()


def test_the_table_names_every_method_and_mask_in_120_columns():
    table = run("methods")
    assert max(map(len, table.splitlines())) <= 120
    names = [line.split()[0] for line in table.splitlines()[2:] if line[0] != " "]
    assert names == list(DECLARED)


@pytest.mark.parametrize("name", DECLARED)
def test_a_page_has_the_docstring_and_every_option(name):
    page, declared = run("methods", name), DECLARED[name]
    assert max(map(len, page.splitlines())) <= 120
    text = " ".join(page.split())
    assert declared.summary in text and declared.paper in text and declared.sees.value in text
    assert " ".join(declared.formula.__doc__.split()) in text
    for option in declared.options.values():
        assert f"--{option.name} " in page or f"--[no-]{option.name} " in page
        assert all(word in page for word in option.about.text.split())


def test_names_of_the_command_line_find_their_page():
    assert run("methods", "ties-merging") == run("methods", "ties_merging")
    assert run("methods", "random") == run("methods", "dare")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "command"),
        (["mix"], "invalid choice: 'mix'"),
        (["methods", "tie"], "methods tie: choose one of ace, "),
        (["merge"], "give the models to merge"),
        (["merge", *MODELS, "--merging_method_name", "magmax", "--t", "0.3"], "--t 0.3 has no effect on magmax"),
        (["diagnose", "--models", "DIR"], "--pretrained_model"),
    ],
)
def test_wrong_words_are_one_line(words, named):
    error = run(*words, expect=2)
    assert named in error and error.count("\n") == 1


def test_help_is_quick_and_names_the_commands():
    command = [sys.executable, "-X", "importtime", "-m", "model_merging_methods", "--help"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5, "a second, on a machine that does nothing else"
    assert all(command in done.stdout for command in ("merge", "diagnose", "methods"))
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"numpy", "torch", "numba", "transformers"}
