"""The main script's merges: those of the published scripts, their names, and every mistake in one line."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge_llms_instruct_math_code import main
from model_merging_methods.command_line import declared_options
from tests.commands import run_here
from tests.model_merging_methods.merges import PAIR

AVERAGE = ["--merging_method_name", "average_merging"]


def run(*arguments: object) -> tuple[int, str]:
    """Run the main script; returns its exit status and stderr."""
    done = run_here(main, arguments)
    return done.returncode, done.stderr


@pytest.fixture
def models(golden_merges, tmp_path) -> Path:
    """A copy of the golden float32 models."""
    for name in ("base", *PAIR):
        shutil.copytree(golden_merges / "float32" / name, tmp_path / "models" / name)
    for path in (tmp_path / "models").rglob("*"):
        path.chmod(0o755)
    return tmp_path / "models"


def chosen(folder: Path, roles=PAIR) -> list[object]:
    """Golden models are made up, with task vectors as long as the weights."""
    words = ["--allow_unrelated", "--merge_only", "--pretrained_model", folder / "base"]
    for role in roles:
        words += [f"--merge_{role}", f"--{role}_model", folder / role]
    return words


def case_options(case: dict) -> list[object]:
    """A golden merge's options, in the words of the command line."""
    given = {name: value for name, value in case.items() if name not in ("id", "models", "expected")}
    words = ["--use_weight_rescale"] if given.pop("use_weight_rescale") else []
    return words + [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]


def merged_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root / "save_merge_models").rglob("*.safetensors"))


def merged(root: Path) -> dict[str, torch.Tensor]:
    return load_file(merged_folders(root)[0] / "model.safetensors")


def test_masks_have_their_own_names_and_the_papers(models, tmp_path):
    for name in ("dare", "random"):
        run(*chosen(models), "--weight_mask_rate", 0.5, "--mask_strategy", name, "--output_dir", tmp_path / name)
    assert merged(tmp_path / "dare").keys() == merged(tmp_path / "random").keys()
    assert all(values.equal(merged(tmp_path / "random")[key]) for key, values in merged(tmp_path / "dare").items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_equal_those_of_the_published_scripts(golden_merges, tmp_path, dtype):
    folder = golden_merges / dtype
    cases = json.loads((folder / "cases.json").read_text())
    assert len(cases) == 16
    for case in cases:
        expected = load_file(folder / case["expected"])
        words, out = [*chosen(folder, case["models"]), *case_options(case)], tmp_path / case["id"]
        assert run(*words, "--dtype", "float32", "--output_dir", out / "float32") == (0, "")
        for name, value in merged(out / "float32").items():
            scale = expected[name].abs().clamp(min=1e-3)
            assert ((value - expected[name]).abs() / scale).max() <= 1e-6, (case["id"], name)
        assert run(*words, "--output_dir", out / "same") == (0, "")
        for name, value in merged(out / "same").items():
            assert torch.equal(value, expected[name].to(getattr(torch, dtype))), (case["id"], name)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--merging_method_name average_merging", "average_merging"),
        ("--merging_method_name task_arithmetic", "task_arithmetic_scaling_coefficient_1.0"),
        ("--merging_method_name ties-merging --param_value_mask_rate 0.5", "ties_merging"),
        ("--merging_method_name ties_merging --scaling_coefficient 0.5", "ties_merging_scaling_coefficient_0.5"),
        ("--use_weight_rescale", "mask_merging/average_merging/mask_0.2_0.2_rescale_True"),
        (
            "--use_weight_rescale --mask_apply_method ties_merging --seed 3",
            "mask_merging/ties_merging_scaling_coefficient_1.0_param_value_mask_rate_0.5/"
            "mask_0.2_0.2_rescale_True_seed_3",
        ),
        (
            "--mask_apply_method task-arithmetic --weight_mask_rate 0.9 --weight_format finetuned_weight",
            "mask_merging/task_arithmetic_scaling_coefficient_1.0/"
            "mask_0.9_0.9_rescale_False_weight_format_finetuned_weight",
        ),
        ("--merging_method_name average_merging --mixup_lambda 0.25", "average_merging_mixup_lambda_0.25"),
        ("--merging_method_name average_merging --dtype bfloat16", "average_merging_dtype_bfloat16"),
    ],
)
def test_folders_have_the_paper_s_names(models, tmp_path, arguments, name):
    assert run(*chosen(models), *arguments.split(), "--output_dir", tmp_path) == (0, "")
    root = tmp_path / "save_merge_models" / "instruct_math"
    assert merged_folders(tmp_path) == [root / role / name for role in PAIR]
    assert len(list((tmp_path / "save_merge_llm_logs" / "instruct_math" / name).glob("*.log"))) == 1


def test_a_drawn_ratio_is_named_recorded_and_repeated_as_a_given_one(models, tmp_path):
    common = [*chosen(models), *AVERAGE]
    for seed in (0, 1, 2):
        assert run(*common, "--mixup", "--alpha", 0.5, "--seed", seed, "--output_dir", tmp_path) == (0, "")
    folders = [folder for folder in merged_folders(tmp_path) if folder.parent.name == "instruct"]
    assert len(folders) == 3
    for folder in folders:
        parameters = json.loads((folder / "merge_record.json").read_text())["parameters"]
        first, _ = parameters["mixup"]["weights"]
        assert f"alpha_0.5_lambda_{first:.4f}_seed_{parameters['seed']}" in folder.name
        assert run(*common, "--mixup_lambda", first, "--output_dir", tmp_path / "given") == (0, "")
        again = tmp_path / "given/save_merge_models/instruct_math/math" / f"average_merging_mixup_lambda_{first}"
        assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_from_record_makes_the_same_model_elsewhere(models, tmp_path):
    words = "--use_weight_rescale --mask_apply_method ties_merging --mixup --seed 4 --output_dir"
    assert run(*chosen(models), *words.split(), tmp_path / "first") == (0, "")
    first, _ = merged_folders(tmp_path / "first")
    record = first / "merge_record.json"
    assert run("--from_record", record, "--merge_only", "--output_dir", tmp_path / "again") == (0, "")
    again, _ = merged_folders(tmp_path / "again")
    assert again.name == first.name
    for path in first.iterdir():
        assert path == record or path.read_bytes() == (again / path.name).read_bytes()


def test_a_record_is_checked_even_if_the_model_exists(models, tmp_path):
    assert run(*chosen(models), *AVERAGE, "--output_dir", tmp_path / "first") == (0, "")
    record = merged_folders(tmp_path / "first")[0] / "merge_record.json"
    weights = models / "math" / "model.safetensors"
    save_file({name: tensor / 2 for name, tensor in load_file(weights).items()}, weights)
    assert run(*chosen(models), *AVERAGE, "--output_dir", tmp_path / "second") == (0, "")
    again = ["--from_record", record, "--merge_only", "--output_dir", tmp_path / "second"]
    assert_one_line(*run(*again), ["math", "model.safetensors", "is not the file"])


@pytest.mark.parametrize("extra", ["--scaling_coefficient 1e39", "--scaling_coefficient 1e8 --dtype float16"])
def test_a_merge_that_overflows_is_not_saved(models, tmp_path, extra):
    words = [*chosen(models), "--merging_method_name", "task_arithmetic", *extra.split()]
    refused(*words, out=tmp_path / "out", message=["tensor ", "do not fit into float", "--scaling_coefficient"])


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_file_in_the_model_s_place_is_reported_before_the_work(models, tmp_path, make, overwrite):
    place = tmp_path / "save_merge_models/instruct_math/math/average_merging"
    place.parent.mkdir(parents=True)
    make(place)
    status, error = run(*chosen(models), *AVERAGE, *overwrite, "--output_dir", tmp_path)
    assert_one_line(status, error, [str(place), "not a folder"])
    assert not merged_folders(tmp_path)


def test_a_model_to_merge_is_never_replaced(models, tmp_path):
    assert run(*chosen(models), *AVERAGE, "--output_dir", tmp_path) == (0, "")
    own = merged_folders(tmp_path)[0]
    again = [*chosen(models)[:-1], own, *AVERAGE, "--output_dir", tmp_path, "--overwrite"]
    assert_one_line(*run(*again), [str(own), "one of the models to merge"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--merging_method_name nothing", ["--merging_method_name"]),
        ("--weight_mask_rate 1.2", ["--weight_mask_rate 1.2"]),
        ("--merging_method_name ties_merging --param_value_mask_rate -0.1", ["--param_value_mask_rate -0.1"]),
        ("--merging_method_name task_arithmetic --scaling_coefficient inf", ["--scaling_coefficient inf"]),
        ("--merging_method_name task_arithmetic --scaling_coefficient math=nan", ["--scaling_coefficient nan: give"]),
        (
            "--mask_strategy breadcrumbs_mergellm --density math=0.5",
            ["--density math=0.5: has no default; add instruct=X"],
        ),
        ("--mixup_lambda 1.5", ["--mixup_lambda 1.5"]),
        ("--merging_method_name average_merging --weight_mask_rate 0.3", ["--weight_mask_rate 0.3 has no effect"]),
        ("--merging_method_name average_merging --scaling_coefficient 2", ["--scaling_coefficient 2 has no effect"]),
        ("--alpha 0.1", ["--alpha 0.1 has no effect on average_merging without --mixup; remove it"]),
        ("--alpha 0", ["--alpha 0.0 has no effect"]),
        ("--code_model somewhere", ["--code_model has no effect"]),
        ("--dtype int8", ["--dtype"]),
        ("--exclude_param_names_regex (", ["--exclude_param_names_regex"]),
        ("--exclude_param_names_regex nothing_has_this_name", ["--exclude_param_names_regex nothing", "matches no"]),
        ("--exclude_param_names_regex .", ["--exclude_param_names_regex", "nothing is left"]),
        ("--device tpu", ["--device"]),
        ("--config_from code", ["--config_from code"]),
        ("--models_dir nowhere", ["--models_dir nowhere"]),
        ("--from_record nowhere.json", ["--from_record"]),
        ("--seed -1", ["--seed"]),
        ("--delete_merged_model", ["--merge_only", "--delete_merged_model"]),
    ],
)
def test_a_wrong_option_gets_one_line_and_leaves_nothing(models, tmp_path, arguments, message):
    refused(*chosen(models), *arguments.split(), out=tmp_path / "out", message=message)


def test_options_of_one_name_have_one_type():
    types = {name: {option.type for option in of_owner.values()} for name, of_owner in declared_options().items()}
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


def test_a_merge_of_one_model_is_refused(models, tmp_path):
    refused(
        *chosen(models, ("math",)),
        out=tmp_path / "out",
        message=["average_merging: merges 2 or more fine-tunes, not 1"],
    )


def fill_disk(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)


def start_on_a_full_disk(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))


@pytest.mark.parametrize(
    ("make_full", "message"), [(start_on_a_full_disk, ["GB free", "output folder"]), (fill_disk, ["No space left"])]
)
def test_a_full_disk_gets_one_line_and_leaves_nothing(models, tmp_path, monkeypatch, make_full, message):
    make_full(monkeypatch)
    refused(*chosen(models), out=tmp_path / "out", message=message)


def refused(*words: object, out: Path, message: list[str]) -> None:
    assert_one_line(*run(*words, "--output_dir", out), message)
    assert not out.exists()


def assert_one_line(status: int, error: str, message: list[str]) -> None:
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for part in message:
        assert part in error
