"""The main script, typed as a researcher types it: merges, names, and every mistake in one line."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge_llms_instruct_math_code import main
from tests.commands import run_here


@pytest.fixture
def run():
    """Run the main script; gives its exit status and stderr."""

    def run_main(*arguments: object) -> tuple[int, str]:
        done = run_here(main, arguments)
        return done.returncode, done.stderr

    return run_main


@pytest.fixture
def models(golden_merges, tmp_path) -> Path:
    """A copy of the golden float32 models, to be broken at will."""
    for name in ("base", "instruct", "math"):
        shutil.copytree(golden_merges / "float32" / name, tmp_path / "models" / name)
    for path in (tmp_path / "models").rglob("*"):
        path.chmod(0o755)
    return tmp_path / "models"


def chosen_models(folder: Path, roles=("instruct", "math")) -> list[object]:
    """Golden models are made up, with task vectors as long as the weights."""
    chosen = ["--allow_unrelated", "--pretrained_model", folder / "base"]
    for role in roles:
        chosen += [f"--merge_{role}", f"--{role}_model", folder / role]
    return chosen


def case_options(case: dict) -> list[object]:
    """A golden merge's options, in the words of the command line."""
    without_value = ("use_weight_rescale",)
    not_options = ("id", "models", "expected", *without_value)
    given = [[f"--{name}", value] for name, value in case.items() if name not in not_options and value is not None]
    given += [[f"--{name}"] for name in without_value if case[name]]
    return [word for option in given for word in option]


def merged_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root / "save_merge_models").rglob("*.safetensors"))


def names(root: Path, task: str = "instruct") -> list[str]:
    folder = next((root / "save_merge_models").iterdir()) / task
    return [str(path.parent.relative_to(folder)) for path in folder.rglob("*.safetensors")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_merge_of_the_published_scripts_comes_out(golden_merges, tmp_path, run, dtype):
    folder = golden_merges / dtype
    cases = json.loads((folder / "cases.json").read_text())
    assert len(cases) == 16
    for case in cases:
        expected = load_file(folder / case["expected"])
        asked = [*chosen_models(folder, case["models"]), *case_options(case), "--merge_only"]

        assert run(*asked, "--dtype", "float32", "--output_dir", tmp_path / case["id"] / "float32") == (0, "")
        for name, value in load_file(
            merged_folders(tmp_path / case["id"] / "float32")[0] / "model.safetensors"
        ).items():
            scale = expected[name].abs().clamp(min=1e-3)
            assert ((value - expected[name]).abs() / scale).max() <= 1e-6, (case["id"], name)

        assert run(*asked, "--output_dir", tmp_path / case["id"] / "same") == (0, "")
        for name, value in load_file(merged_folders(tmp_path / case["id"] / "same")[0] / "model.safetensors").items():
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
def test_folders_have_the_paper_s_names(models, tmp_path, run, arguments, name):
    assert run(*chosen_models(models), *arguments.split(), "--merge_only", "--output_dir", tmp_path) == (0, "")
    assert names(tmp_path) == [name]
    assert len(merged_folders(tmp_path)) == 2
    assert len(list((tmp_path / "save_merge_llm_logs" / "instruct_math" / name).glob("*.log"))) == 1


def test_a_drawn_ratio_is_in_the_name_and_on_record(models, tmp_path, run):
    common = [*chosen_models(models), "--merging_method_name", "average_merging", "--merge_only"]
    for seed in (0, 1, 2):
        drawn = [*common, "--mixup", "--alpha", 0.5, "--seed", seed, "--output_dir", tmp_path]
        assert run(*drawn) == (0, "")
    folders = [folder for folder in merged_folders(tmp_path) if folder.parent.name == "instruct"]
    assert len(folders) == 3
    for folder in folders:
        record = json.loads((folder / "merge_record.json").read_text())
        first, _ = record["parameters"]["mixup"]["weights"]
        assert f"alpha_0.5_lambda_{first:.4f}_seed_{record['parameters']['seed']}" in folder.name
        given = [*common, "--mixup_lambda", first, "--output_dir", tmp_path / "given"]
        assert run(*given) == (0, "")
        again = tmp_path / "given/save_merge_models/instruct_math/math" / f"average_merging_mixup_lambda_{first}"
        assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_from_record_makes_the_same_model_elsewhere(models, tmp_path, run):
    asked = "--use_weight_rescale --mask_apply_method ties_merging --mixup --seed 4 --merge_only --output_dir"
    assert run(*chosen_models(models), *asked.split(), tmp_path / "first") == (0, "")
    first, _ = merged_folders(tmp_path / "first")
    record = first / "merge_record.json"
    assert run("--from_record", record, "--merge_only", "--output_dir", tmp_path / "again") == (0, "")
    again, _ = merged_folders(tmp_path / "again")
    assert again.name == first.name
    for path in first.iterdir():
        assert path == record or path.read_bytes() == (again / path.name).read_bytes()


def broken_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 500)


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def without_output_embeddings(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")


def with_another_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.1.mlp.third_proj.weight": torch.zeros(3)}, folder / "model.safetensors")


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(8, 16)
    save_file(tensors, folder / "model.safetensors")


def with_value(value: float):
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(tensors, folder / "model.safetensors")

    return change


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code_was_run",))


def malicious_pickle(folder: Path) -> None:
    torch.save({"lm_head.weight": RunsCode()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated_pickle(folder: Path) -> None:
    pickled(folder)
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])


def with_header(change):
    """Rewrite the header's entry for one tensor."""

    def rewrite(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header["lm_head.weight"])
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return rewrite


def nested_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (shutil.rmtree, ["math", "no such model folder"]),
        (broken_header, ["math/model.safetensors", "corrupt"]),
        (truncated, ["math/model.safetensors", "truncated"]),
        (without_tensor, ["math: lacks tensors", "1 only in base: model.layers.1.mlp.up_proj.weight", "--exclude"]),
        (without_output_embeddings, ["math: stores no output head (lm_head.weight)"]),
        (with_another_tensor, ["math: ", "1 only in math: model.layers.1.mlp.third_proj.weight"]),
        (with_another_shape, ["model.layers.1.mlp.up_proj.weight", "8 x 16", "40 x 16"]),
        (with_value(float("nan")), ["math/model.safetensors", "model.layers.1.mlp.up_proj.weight", "NaN"]),
        (with_value(float("-inf")), ["math/model.safetensors", "model.layers.1.mlp.up_proj.weight", "infinity"]),
        (missing_shard, ["model-00001-of-00002.safetensors", "missing"]),
        (malicious_pickle, ["math/pytorch_model.bin", "UnpicklingError"]),
        (truncated_pickle, ["math/pytorch_model.bin", "pickled"]),
        (with_header(lambda entry: entry.update(shape=[61.0, 16])), ["math/model.safetensors", "corrupt"]),
        (with_header(lambda entry: entry.update(shape=[-61, -16])), ["math/model.safetensors", "corrupt"]),
        (with_header(lambda entry: entry.update(data_offsets=[8, 3912])), ["math/model.safetensors", "corrupt"]),
        (nested_config, ["math/config.json"]),
        (no_weights, ["math", "no weights"]),
        (broken_config, ["math/config.json"]),
        (broken_tokenizer, ["math/tokenizer.json"]),
    ],
)
def test_a_broken_model_gets_one_line_and_leaves_nothing(models, tmp_path, run, break_it, told):
    break_it(models / "math")
    out = tmp_path / "out"
    ties = [*chosen_models(models), "--merging_method_name", "ties_merging", "--merge_only"]
    status, error = run(*ties, "--output_dir", out)
    assert_one_line(status, error, told)
    assert not out.exists()
    assert not Path("code_was_run").exists()


def test_pickled_weights_give_the_same_merge(models, tmp_path, run):
    ties = [*chosen_models(models), "--merging_method_name", "ties_merging", "--merge_only", "--output_dir"]
    assert run(*ties, tmp_path / "safetensors") == (0, "")
    for name in ("base", "math"):
        pickled(models / name)
    assert run(*ties, tmp_path / "pickled") == (0, "")
    first, again = (merged_folders(tmp_path / name)[0] for name in ("safetensors", "pickled"))
    assert load_file(first / "model.safetensors").keys() == load_file(again / "model.safetensors").keys()
    for name, value in load_file(first / "model.safetensors").items():
        assert torch.equal(value, load_file(again / "model.safetensors")[name])


@pytest.mark.parametrize("extra", ["--scaling_coefficient 1e39", "--scaling_coefficient 1e8 --dtype float16"])
def test_a_merge_that_overflows_is_not_saved(models, tmp_path, run, extra):
    asked = [*chosen_models(models), "--merging_method_name", "task_arithmetic", *extra.split(), "--merge_only"]
    status, error = run(*asked, "--output_dir", tmp_path / "out")
    assert_one_line(status, error, ["tensor ", "do not fit into float", "--scaling_coefficient"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_folder_at_the_model_s_place_is_told_before_the_work(models, tmp_path, run, make, overwrite):
    place = tmp_path / "save_merge_models/instruct_math/math/average_merging"
    place.parent.mkdir(parents=True)
    make(place)
    asked = [*chosen_models(models), "--merging_method_name", "average_merging", "--merge_only", *overwrite]
    status, error = run(*asked, "--output_dir", tmp_path)
    assert_one_line(status, error, [str(place), "not a folder"])
    assert not merged_folders(tmp_path)


def test_a_model_to_merge_is_never_replaced(models, tmp_path, run):
    average = ["--merging_method_name", "average_merging", "--merge_only", "--output_dir", tmp_path]
    assert run(*chosen_models(models), *average) == (0, "")
    own = merged_folders(tmp_path)[0]
    again = [*chosen_models(models)[:-1], own, *average, "--overwrite"]
    assert_one_line(*run(*again), [str(own), "one of the models to merge"])


def test_a_record_is_checked_even_where_the_model_exists(models, tmp_path, run):
    average = [*chosen_models(models), "--merging_method_name", "average_merging", "--merge_only", "--output_dir"]
    assert run(*average, tmp_path / "first") == (0, "")
    record = merged_folders(tmp_path / "first")[0] / "merge_record.json"
    with_value(0.5)(models / "math")
    assert run(*average, tmp_path / "second") == (0, "")
    again = ["--from_record", record, "--merge_only", "--output_dir", tmp_path / "second"]
    assert_one_line(*run(*again), ["math", "model.safetensors", "is not the file"])


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["parameters"].update(param_value_mask_rate="0.5"),
        lambda record: record["parameters"].update(method="magic"),
        lambda record: record["parameters"].update(mixup={"weights": [0.2, 0.3, 0.5], "alpha": None}),
        lambda record: record["inputs"][1].pop("files"),
        lambda record: record.pop("parameters"),
    ],
)
def test_a_damaged_record_is_told(models, tmp_path, run, change):
    average = [*chosen_models(models), "--merging_method_name", "average_merging", "--merge_only"]
    assert run(*average, "--output_dir", tmp_path / "first") == (0, "")
    record = merged_folders(tmp_path / "first")[0] / "merge_record.json"
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))
    again = ["--from_record", record, "--merge_only", "--output_dir", tmp_path / "again"]
    assert_one_line(*run(*again), [])
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--merging_method_name nothing", ["--merging_method_name"]),
        ("--weight_mask_rate 1.2", ["--weight_mask_rate 1.2"]),
        ("--weight_mask_rate nan", ["--weight_mask_rate nan"]),
        ("--merging_method_name ties_merging --param_value_mask_rate -0.1", ["--param_value_mask_rate -0.1"]),
        ("--merging_method_name task_arithmetic --scaling_coefficient inf", ["--scaling_coefficient inf"]),
        ("--mixup --alpha nan", ["--alpha nan"]),
        ("--mixup_lambda 1.5", ["--mixup_lambda 1.5"]),
        ("--mixup_lambda 0.2 0.3 0.5", ["--mixup_lambda 0.2 0.3 0.5", "2 models"]),
        ("--mixup_lambda 0.5 0.6", ["--mixup_lambda 0.5 0.6", "sum"]),
        ("--merging_method_name average_merging --weight_mask_rate 0.3", ["--weight_mask_rate 0.3 has no effect"]),
        ("--merging_method_name average_merging --scaling_coefficient 2", ["--scaling_coefficient 2.0 has no effect"]),
        ("--alpha 0.1", ["--alpha 0.1 has no effect"]),
        ("--alpha 0", ["--alpha 0.0 has no effect"]),
        ("--merging_method_name average_merging --weight_mask_rate 0", ["--weight_mask_rate 0.0 has no effect"]),
        ("--code_model somewhere", ["--code_model has no effect"]),
        ("--scaling_coeff 1.0", ["--scaling_coeff"]),
        ("--models_dir nowhere", ["--models_dir nowhere"]),
        ("--from_record nowhere.json", ["--from_record"]),
        ("--seed -1", ["--seed"]),
        ("--delete_merged_model", ["--merge_only", "--delete_merged_model"]),
    ],
)
def test_a_wrong_option_gets_one_line_and_leaves_nothing(models, tmp_path, run, arguments, told):
    out = tmp_path / "out"
    status, error = run(*chosen_models(models), *arguments.split(), "--merge_only", "--output_dir", out)
    assert_one_line(status, error, told)
    assert not out.exists()


def test_one_model_is_no_merge(models, tmp_path, run):
    status, error = run(*chosen_models(models, ("math",)), "--output_dir", tmp_path / "out")
    assert_one_line(status, error, ["--merge_instruct", "two"])


def test_no_room_is_told_before_the_first_byte(models, tmp_path, run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    status, error = run(*chosen_models(models), "--merge_only", "--output_dir", tmp_path / "out")
    assert_one_line(status, error, ["GB free", "--output_dir"])
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_while_merging_is_told_and_leaves_nothing(models, tmp_path, run, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    status, error = run(*chosen_models(models), "--merge_only", "--output_dir", tmp_path / "out")
    assert_one_line(status, error, ["No space left"])
    assert not (tmp_path / "out").exists()


def assert_one_line(status: int, error: str, told: list[str]) -> None:
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for part in told:
        assert part in error
