"""Merges are known by the contents of what they read and wrote; records of wrong types are one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from merges import MERGES, request
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import save_model
from transformers import AutoModelForCausalLM

from inference_llms.model_folder import file_hashes, model_fingerprint, weights_fingerprint
from model_merging_methods import merge_models as module
from model_merging_methods.engine import Merge
from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import RECORD_FILE, MergeRequest, read_record, request_from_record
from utils.content_hashes import content_hash
from utils.errors import UserError

ROLES = ("math", "code")
LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A base, two fine-tunes, an adapter, and the average of the fine-tunes, all with the times of an archive."""
    root = tmp_path_factory.mktemp("zoo")
    base = save_model(root / "base", seed=0)
    for seed, role in enumerate(ROLES, start=1):
        save_model(root / role, seed, base=base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(root / "adapter")
    for path in root.rglob("*.*"):
        os.utime(path, LONG_AGO)
    merge_models(request(root, MERGES["average"], ROLES), {role: root / "merged" / role for role in ROLES})
    return root


@pytest.fixture
def models(zoo, tmp_path) -> Path:
    """A copy, to be spoilt."""
    shutil.copytree(zoo, tmp_path / "zoo", copy_function=shutil.copy2)
    return tmp_path / "zoo"


def merge(models: Path, name: str = "merged", parameters=MERGES["average"], **options) -> None:
    asked = request(models, parameters, ROLES)
    merge_models(asked, {role: models / name / role for role in ROLES}, **options)


def change_value(path: Path, name: str = "model.norm.weight") -> None:
    """Another value, the same size and times."""
    tensors = load_file(path)
    tensors[name].view(-1)[1] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, LONG_AGO)


def replace_text(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("two", "owt").replace("silu", "gelu"))
    os.utime(path, LONG_AGO)
    assert path.read_text() != text


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", change_value),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-400] + bytes(400))),
        ("model.safetensors", Path.unlink),
        ("config.json", Path.unlink),
        ("config.json", replace_text),
        ("generation_config.json", Path.unlink),
        ("tokenizer.json", replace_text),
        ("tokenizer_config.json", Path.unlink),
    ],
)
def test_a_damaged_result_is_named_and_not_taken(models, file, damage):
    merge(models)  # already merged
    damaged = models / "merged" / "code" / file
    damage(damaged)
    with pytest.raises(UserError, match=rf"{damaged}: (is missing|has another size|was changed).*--overwrite"):
        merge(models)
    merge(models, overwrite=True)
    merge(models)


def test_an_edited_model_card_is_left_alone(models):
    card = models / "merged" / "math" / "README.md"
    card.write_text("mine")
    merge(models)
    assert card.read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("math/model.safetensors", change_value),
        ("base/config.json", replace_text),
        ("code/tokenizer.json", replace_text),
        ("base/tokenizer_config.json", Path.unlink),
    ],
)
def test_another_input_of_the_same_size_and_time_is_another_merge(models, file, change):
    change(models / file)
    with pytest.raises(UserError, match="another run"):
        merge(models)


def test_the_same_contents_in_another_folder_are_the_same_merge(models, tmp_path):
    shutil.move(models / "math", tmp_path / "moved")
    asked = MergeRequest(models / "base", {"math": tmp_path / "moved", "code": models / "code"}, MERGES["average"])
    before = (models / "merged" / "math").stat().st_ino
    merge_models(asked, {"math": models / "merged" / "math"})
    assert (models / "merged" / "math").stat().st_ino == before


def test_an_average_does_not_depend_on_the_base_s_values(models):
    change_value(models / "base" / "model.safetensors")
    merge(models)
    with pytest.raises(UserError, match="another run"):
        change_value(models / "base" / "model.safetensors")
        merge(models, parameters=MERGES["task arithmetic"])


def rewrite(folder: Path, change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def prefixed(models: Path, more: dict[str, torch.Tensor]) -> None:
    rewrite(models / "base", lambda tensors: {f"module.{name}": t for name, t in {**tensors, **more}.items()})


def doubled_head(models: Path) -> None:
    """Both names of a tied head, as some programs save it."""
    for role in ("base", *ROLES):
        rewrite(
            models / role, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        )


NEVER_LOADED = {"model.layers.2.eh_proj.weight": torch.ones(4, 4)}
COPIED = {
    "an excluded tensor of a wrapped base": (
        lambda models: prefixed(models, {}),
        (r"^model\.norm",),
        lambda models: change_value(models / "base" / "model.safetensors", "module.model.norm.weight"),
    ),
    "a layer of a wrapped base that is never loaded": (
        lambda models: prefixed(models, NEVER_LOADED),
        (),
        lambda models: change_value(models / "base" / "model.safetensors", f"module.{next(iter(NEVER_LOADED))}"),
    ),
    "an excluded head that decides what is one matrix": (
        doubled_head,
        ("lm_head",),
        lambda models: change_value(models / "math" / "model.safetensors", "lm_head.weight"),
    ),
    "code that is copied": (
        lambda models: (models / "base" / "modeling_ours.py").write_text("version = 1"),
        (),
        lambda models: (models / "base" / "modeling_ours.py").write_text("version = 2"),
    ),
}


@pytest.mark.parametrize(("prepare", "exclude", "change"), COPIED.values(), ids=COPIED)
def test_whatever_a_merge_copies_decides_which_merge_it_is(models, prepare, exclude, change):
    prepare(models)
    parameters = replace(MERGES["average"], exclude_param_names_regex=exclude)
    merge(models, "copied", parameters)
    merge(models, "copied", parameters)  # already merged
    change(models)
    with pytest.raises(UserError, match="another run"):
        merge(models, "copied", parameters)


@pytest.mark.parametrize(
    ("role", "file", "change"),
    [
        ("base", "config.json", replace_text),
        ("base", "generation_config.json", Path.unlink),
        ("code", "tokenizer.json", replace_text),
        ("code", "chat_template.jinja", lambda path: path.write_text("{{ messages }}")),
        ("code", "model.safetensors", change_value),
        ("base", "model.safetensors", change_value),
        ("math", "adapter_config.json", lambda path: path.write_text(path.read_text() + "\n")),
        ("math", "adapter_model.safetensors", Path.touch),
    ],
)
def test_an_input_that_changes_meanwhile_is_named_and_nothing_is_written(models, monkeypatch, role, file, change):
    shutil.rmtree(models / "math")
    shutil.move(models / "adapter", models / "math")
    write = Merge.write

    def change_then_write(self, *arguments) -> None:
        change(models / role / file)
        write(self, *arguments)

    monkeypatch.setattr(Merge, "write", change_then_write)
    with pytest.raises(UserError, match=rf"{models / role / file}: was changed while it was being read"):
        merge(models, "again")
    assert not (models / "again").exists()


def test_a_tokenizer_that_changes_after_the_weights_is_noticed(models, monkeypatch):
    write = module.write_model_files

    def write_then_change(asked, aligned, role, folder) -> None:
        write(asked, aligned, role, folder)
        if "unfinished" in folder.name:
            replace_text(models / "code" / "tokenizer.json")

    monkeypatch.setattr(module, "write_model_files", write_then_change)
    with pytest.raises(UserError, match=r"code/tokenizer\.json: was changed"):
        merge(models, "again")
    assert not (models / "again").exists()


def test_the_digests_on_record_are_those_of_the_files(models):
    merge(models, "small", work=MergeWork(largest_shard=5_000))
    for folder in (*(models / "merged").iterdir(), *(models / "small").iterdir()):
        record = read_record(folder / RECORD_FILE)
        outputs = {file["name"]: file["xxh3_128"] for file in record["outputs"]}
        assert outputs == {
            path.name: content_hash(path) for path in folder.iterdir() if path.name not in (RECORD_FILE, "README.md")
        }


def test_a_record_of_the_earlier_format_still_works(models):
    folders = [models / "merged" / role for role in ROLES]
    for folder in folders:
        record = read_record(folder / RECORD_FILE)
        record |= {"format": 2, "outputs": {"model.safetensors": (folder / "model.safetensors").stat().st_size}}
        record["inputs"][1]["files"] = [
            file for file in record["inputs"][1]["files"] if file["name"] != "tokenizer_config.json"
        ]
        (folder / RECORD_FILE).write_text(json.dumps(record))
    merge(models)
    again = request_from_record(folders[0] / RECORD_FILE, {})
    merge_models(again, {"math": models / "again"}, made_from=folders[0] / RECORD_FILE)
    assert read_record(models / "again" / RECORD_FILE)["fingerprint"] == record["fingerprint"]
    (folders[1] / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: is missing"):
        merge(models)


def test_merged_weights_that_changed_do_not_pass_as_the_merge(models):
    math, code = (models / "merged" / role for role in ROLES)
    assert (
        weights_fingerprint(math, file_hashes(math))
        == weights_fingerprint(code, file_hashes(code))
        == read_record(math / RECORD_FILE)["fingerprint"]
    )
    before = model_fingerprint(file_hashes(code))
    change_value(code / "model.safetensors")
    assert model_fingerprint(file_hashes(code)) != before
    with pytest.raises(UserError, match=r"model\.safetensors: was changed since the merge"):
        weights_fingerprint(code, file_hashes(code))


def nothing(record: dict) -> None:
    record.clear()


def set_to(*place: str | int, value: object):
    def change(record: dict) -> None:
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        set_to("format", value=[]),
        set_to("inputs", value=5),
        set_to("inputs", 0, "files", value=5),
        set_to("inputs", 0, "files", 0, "name", value=7),
        set_to("inputs", 0, "files", 0, "name", value="../config.json"),
        set_to("inputs", 0, "files", 0, "bytes", value="many"),
        set_to("inputs", 0, "folder", value="a\0b"),
        set_to("inputs", 1, "role", value="../../escape"),
        set_to("inputs", 1, "role", value="/etc"),
        set_to("inputs", 1, "role", value=""),
        set_to("inputs", 1, "role", value=".."),
        set_to("outputs", value=["model.safetensors"]),
        set_to("outputs", 0, "name", value="../../other"),
        set_to("fingerprint", value=None),
        set_to("parameters", value=[]),
        set_to("parameters", "scaling_coefficient", value="1"),
        set_to("parameters", "exclude_param_names_regex", value="norm"),
        set_to("parameters", "mixup", value={"weights": "01", "alpha": None}),
        set_to("parameters", "another_option", value=1),
        set_to("parameters", "method", value="../../../x"),
        set_to("parameters", "dtype", value="int8"),
        set_to("parameters", "config_from", value="instruct"),
        set_to("parameters", "mask", value={"mask_strategy": "half"}),
        set_to("parameters", "mask", value={"weight_format": "half"}),
        set_to("inputs", 2, "role", value="math"),
    ],
)
def test_a_record_of_wrong_types_is_one_line(models, change):
    path = models / "merged" / "math" / RECORD_FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    for use in (
        lambda: request_from_record(path, {}),
        lambda: merge(models),
        lambda: weights_fingerprint(path.parent, file_hashes(path.parent)),
    ):
        try:
            use()
        except UserError as error:
            assert "\n" not in str(error)
    with pytest.raises(UserError):
        request_from_record(path, {})


def test_the_hash_of_a_file_is_that_of_a_plain_reading(models):
    """By the definition: names, dtypes, shapes and digests of stretches."""
    import xxhash

    path = models / "math" / "model.safetensors"
    expected = []
    for name, values in load_file(path).items():
        digest = xxhash.xxh3_128_digest(np.ascontiguousarray(values.numpy()).view(np.uint8).tobytes())
        expected.append([name, "F32", list(values.shape), xxhash.xxh3_128_hexdigest(digest)])
    order = list(json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]))
    expected.sort(key=lambda entry: order.index(entry[0]))
    assert torch.float32 == load_file(path)["lm_head.weight"].dtype
    assert content_hash(path) == xxhash.xxh3_128_hexdigest(json.dumps(expected).encode())
