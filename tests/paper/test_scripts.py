"""The scripts of the tables: what they list, what a dry run tells, what a job array runs."""

import re
import shlex
import subprocess
from collections import Counter

import pytest

from scripts.paper_tables.cell import MAIN_JOB, read_cells
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.jobs import check_cells, jobs_of_cells
from tests.inference_llms.support import ROOT
from tests.paper.support import SCRIPTS, TABLES, run_script


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells of all scripts, listed without running any."""
    listed = tmp_path_factory.mktemp("cells") / "cells.tsv"
    for table in TABLES:
        done = run_script(SCRIPTS / f"{table}.sh", PAPER_CELLS=str(listed))
        assert done.returncode == 0, done.stderr
    return read_cells(listed)


def of_table(cells, table):
    return [cell for cell in cells if table in cell.tables]


def setting(results_dir, models=None):
    return Setting(results_dir, models, None, "auto", None)


def test_every_pair_and_the_three_are_merged_by_each_method_without_m3_and_with_several_draws(cells):
    merges = Counter()
    for cell in of_table(cells, "performance"):
        models = frozenset(word for word in cell.merge if word.startswith("--merge_"))
        method = cell.merge[cell.merge.index("--merging_method_name") + 1]
        merges[models, method, "--mixup" in cell.merge] += 1
    instruct, math, code = "--merge_instruct", "--merge_math", "--merge_code"
    assert merges == {
        (frozenset(models), method, drawn): 3 if drawn else 1
        for models in ((instruct, math), (instruct, code), (math, code), (instruct, math, code))
        for method in ("average_merging", "task_arithmetic", "ties_merging")
        for drawn in (False, True)
    }


def test_a_merge_that_tables_share_is_one_cell(cells):
    assert len({(cell.merge, cell.words) for cell in cells}) == len(cells)
    neither = [cell for cell in of_table(cells, "dare") if "mask_merging" not in cell.merge]
    assert neither and all("performance" in cell.tables for cell in neither)


def test_pairs_meet_the_sets_that_the_paper_asks_them(cells):
    asked = {(cell.merge[0], cell.merge[1], cell.tasks[0]) for cell in of_table(cells, "ood")}
    assert asked == {
        ("--merge_math", "--merge_code", "instruction_following"),
        ("--merge_instruct", "--merge_math", "coding"),
        ("--merge_instruct", "--merge_code", "typos"),
    }
    attacks = Counter((cell.tasks[0], attack) for cell in of_table(cells, "adversarial") for attack in cell.attacks)
    assert attacks.keys() == {
        (task, name) for task in ("sst2", "cola") for name in ("deepwordbug", "bertattack", "stresstest")
    }


def test_every_cell_is_a_command_that_makes_sense(cells, tmp_path):
    for models in (None, "tiny"):
        check_cells(cells, setting(tmp_path, models))


def test_a_job_is_one_merge_so_that_no_two_write_to_one_place(cells, tmp_path):
    jobs = jobs_of_cells(cells, setting(tmp_path, "tiny"))
    assert sum(map(len, jobs)) == len(cells)
    outputs = [
        {(cell.script.startswith("promptbench/"), cell.merge) for cell in job if cell.script != MAIN_JOB}
        for job in jobs
    ]
    named = [merge for merges in outputs for merge in merges]
    assert len(named) == len(set(named))


def test_a_dry_run_prints_every_command_and_what_it_would_take_and_leaves_nothing(tmp_path):
    done = run_script(SCRIPTS / "all.sh", "--models", "tiny", "--dry_run", "--results_dir", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("python ")]
    assert sum("merge_llms_instruct_math_code.py" in line for line in commands) > 78
    assert sum("ood_robust_inference.py" in line for line in commands) == 12
    assert re.search(r"time +\d", done.stdout) and "GPU-hours" in done.stdout and re.search(r"disk +\d", done.stdout)
    assert sum("--attack_method bertattack" in line and "--mask_lm scripts/tiny_zoo" in line for line in commands) == 24
    assert not (tmp_path / "results").exists()


def test_a_job_array_has_a_task_for_each_merge_and_each_runs_by_its_number(tmp_path):
    done = run_script(SCRIPTS / "alpha.sh", "--models", "tiny", "--slurm", "--results_dir", tmp_path, SEEDS="0 1")
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / "paper_jobs").glob("alpha_*.sbatch")
    text = script.read_text()
    assert "#SBATCH --array=0-10\n" in text  # one without M3, and two draws at each of five α
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    words = shlex.split(text.splitlines()[-1])
    assert words[-2:] == ["--job", "$SLURM_ARRAY_TASK_ID"]
    assert str(tmp_path) in words and str(ROOT) in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--models", "no/such/folder"), "--models no/such/folder"),
        (("--backend", "replay"), "--backend"),
        (("--dryrun",), "--dryrun"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options, told):
    done = run_script(SCRIPTS / "alpha.sh", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1
