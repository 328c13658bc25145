"""Diagnoses: a table, a file and a picture with the same figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from model_merging_methods.diagnose import main as diagnose
from model_merging_methods.merge_record import read_record
from tests.model_merging_methods.merges import ROLES, TASK_ARITHMETIC, merge
from tests.model_merging_methods.small_models import change_tensors, save_models
from utils.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), ROLES)


def run(base: Path, models: list[Path], *more: object) -> None:
    diagnose(list(map(str, ["--pretrained_model", base, "--models", *models, *more])))


def test_table_file_and_picture_have_the_same_figures(models, tmp_path, capsys, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure) or Path(path).touch())
    fine_tunes = [models / role for role in ROLES]
    run(models / "base", fine_tunes, "--output_dir", tmp_path)
    shown = capsys.readouterr().out
    assert "layer 1" in shown and "instruct + math" in shown
    folder = tmp_path / "save_model_diagnoses" / "instruct_math_code"
    merge(models, tmp_path / "merged", TASK_ARITHMETIC, ROLES)
    expected = read_record(tmp_path / "merged" / "merge_record.json")["found"]["models"]
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    assert {**diagnosis, "inputs": None} == {**expected, "inputs": None}

    cosines, changes, sizes = figures[0].axes[:3]
    assert cosines.images[0].get_array().shape == (3, len(expected["groups"]))
    assert [len(line.get_ydata()) for line in changes.lines] == [len(expected["groups"])] * 3
    for axes in (changes, sizes):
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label.split()[0] for label in labels] == list(ROLES)
        figures[0].canvas.draw()
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1, "the legend is beside the data"
    for patch, role in zip(sizes.patches, ROLES, strict=True):
        unchanged = expected["overall"]["models"][role]["unchanged"]
        assert f"({unchanged:.1%} unchanged)" in patch.get_label()
    with pytest.raises(UserError, match=r"earlier diagnosis.*--overwrite"):
        run(models / "base", fine_tunes, "--output_dir", tmp_path)
    run(models / "base", fine_tunes, "--output_dir", tmp_path, "--overwrite")


def test_models_of_one_folder_name_and_unchanged_ones_are_distinguished(models, tmp_path):
    other = shutil.copytree(models / "base", tmp_path / "a" / "base")
    change_tensors(other, lambda tensors: {name: tensor + 0.01 for name, tensor in tensors.items()})
    run(models / "base", [models / "base", other], "--output_dir", tmp_path)
    folder = tmp_path / "save_model_diagnoses" / "base_base.2"
    assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((folder / "diagnosis.json").read_text())["overall"]["models"]
    assert figures["base"] == {"change": 0.0, "unchanged": 1.0} and figures["base.2"]["unchanged"] == 0


def test_a_wrong_diagnosis_gets_one_line(models, tmp_path):
    command = [
        sys.executable,
        "-m",
        "model_merging_methods.diagnose",
        "--pretrained_model",
        models / "base",
        "--models",
    ]
    for given, message in (([models / "math"], "--models"), ([models / "math", tmp_path / "no"], "no such")):
        root = Path(__file__).parents[2]
        done = subprocess.run([*command, *given], capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
