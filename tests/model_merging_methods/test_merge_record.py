"""Merges are recognised by the contents of what they read and wrote; damaged records are refused in one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from inference_llms.model_folder import file_hashes, model_fingerprint, weights_fingerprint
from model_merging_methods import preflight
from model_merging_methods.engine import Merge
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_record import RECORD_FILE, read_record, request_from_record
from tests.model_merging_methods.merges import MERGES, request
from tests.model_merging_methods.small_models import Tensors, change_tensors, save_models
from utils.content_hashes import content_hash
from utils.errors import UserError

ROLES = ("math", "code")
LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A base, two fine-tunes, an adapter, and the average of the fine-tunes, all with the times of an archive."""
    root = save_models(tmp_path_factory.mktemp("zoo"), ROLES)
    base = root / "base"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(root / "adapter")
    for path in root.rglob("*.*"):
        os.utime(path, LONG_AGO)
    merge_folders(request(root, MERGES["average"], ROLES), {role: root / "merged" / role for role in ROLES})
    return root


@pytest.fixture
def models(zoo, tmp_path) -> Path:
    """A copy to change."""
    shutil.copytree(zoo, tmp_path / "zoo", copy_function=shutil.copy2)
    return tmp_path / "zoo"


def merge(models: Path, name: str = "merged", parameters=MERGES["average"], **options) -> None:
    merge_folders(request(models, parameters, ROLES), {role: models / name / role for role in ROLES}, **options)


def change_value(path: Path, name: str = "model.norm.weight") -> None:
    """Another value, the same size and times."""

    def change(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[1] += 0.5
        return tensors

    change_tensors(path.parent, change)
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
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("config.json", replace_text),
        ("tokenizer_config.json", Path.unlink),
    ],
)
def test_a_damaged_result_is_named_and_not_accepted(models, file, damage):
    merge(models)  # already merged
    damaged = models / "merged" / "code" / file
    damage(damaged)
    with pytest.raises(UserError, match=rf"{damaged}: (is missing|has another size|was changed).*--overwrite"):
        merge(models)
    merge(models, overwrite=True)
    merge(models)


def test_an_edited_model_card_is_kept(models):
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


def test_the_same_contents_in_another_folder_are_the_same_merge(models):
    shutil.move(models / "math", models / "moved")
    (models / "moved" / "model.safetensors").touch()
    moved = request(models, MERGES["average"], {"math": "moved", "code": "code"})
    before = (models / "merged" / "math").stat().st_ino
    merge_folders(moved, {"math": models / "merged" / "math"})
    assert (models / "merged" / "math").stat().st_ino == before


def test_an_average_does_not_depend_on_the_base_s_values(models):
    change_value(models / "base" / "model.safetensors")
    merge(models)
    with pytest.raises(UserError, match="another run"):
        change_value(models / "base" / "model.safetensors")
        merge(models, parameters=MERGES["task arithmetic"])


def prefixed(models: Path, more: Tensors) -> None:
    change_tensors(models / "base", lambda tensors: {f"module.{name}": t for name, t in {**tensors, **more}.items()})


def doubled_head(models: Path) -> None:
    """Both names of a tied head, as some programs save it."""
    for role in ("base", *ROLES):
        change_tensors(
            models / role, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
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
def test_changed_copied_parts_are_another_merge(models, prepare, exclude, change):
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
        ("code", "chat_template.jinja", lambda path: path.write_text("{{ messages }}")),
        ("code", "model.safetensors", change_value),
        ("base", "model.safetensors", change_value),
        ("base", "model.safetensors", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("math", "adapter_config.json", lambda path: path.write_text(path.read_text() + "\n")),
        ("math", "adapter_model.safetensors", Path.touch),
    ],
)
def test_an_input_that_changes_meanwhile_is_named(models, monkeypatch, role, file, change):
    shutil.rmtree(models / "math")
    shutil.move(models / "adapter", models / "math")
    write = Merge.write

    def change_then_write(self, *arguments) -> None:
        change(models / role / file)
        write(self, *arguments)

    monkeypatch.setattr(Merge, "write", change_then_write)
    with pytest.raises(UserError, match=rf"{models / role / file}: (was changed while it was being read|ends within)"):
        merge(models, "again")
    assert not (models / "again").exists()


def test_a_tokenizer_that_changes_after_the_weights_is_noticed(models, monkeypatch):
    write = preflight.write_model_files

    def write_then_change(request, aligned, role, folder) -> None:
        write(request, aligned, role, folder)
        if "unfinished" in folder.name:
            replace_text(models / "code" / "tokenizer.json")

    monkeypatch.setattr(preflight, "write_model_files", write_then_change)
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
    merge_folders(again, {"math": models / "again"}, made_from=folders[0] / RECORD_FILE)
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


def set_to(*place: str | int, value: object):
    def change(record: dict) -> None:
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value

    return change


DAMAGED = [
    (lambda record: record.clear(), "is not a merge record of this version"),
    (lambda record: record.pop("parameters"), "parameters: field required"),
    (set_to("format", value=[]), "is not a merge record of this version"),
    (set_to("inputs", 0, "files", 0, "name", value="../config.json"), "'../config.json' cannot name a file"),
    (set_to("inputs", 0, "files", 0, "bytes", value="many"), "inputs.0.files.0.bytes: input should be a valid integer"),
    (set_to("inputs", 0, "folder", value="a\0b"), "holds the character NUL"),
    (set_to("inputs", 1, "role", value="../../escape"), "'../../escape' cannot name a file"),
    (set_to("inputs", 1, "role", value="/etc"), "'/etc' cannot name a file"),
    (set_to("inputs", 1, "role", value=""), "'' cannot name a file"),
    (set_to("inputs", 2, "role", value="math"), "names a role twice"),
    (set_to("outputs", value=["model.safetensors"]), "outputs."),
    (
        set_to("parameters", "mixup", value={"weights": "01", "alpha": None}),
        "parameters.mixup.weights: input should be",
    ),
    (set_to("parameters", "mixup", value={"weights": [0.2, 0.3, 0.5], "alpha": None}), "3 ratios for 2 models"),
    (set_to("parameters", "another_option", value=1), "is not a complete merge record"),
    (set_to("parameters", "method", value="../../../x"), "method ../../../x: choose one of"),
    (set_to("parameters", "dtype", value="int8"), "--dtype int8: choose one of"),
    (set_to("parameters", "config_from", value="instruct"), "config_from is 'instruct', which is not a role"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_a_damaged_record_is_refused_by_field_in_one_line(models, change, message):
    path = models / "merged" / "math" / RECORD_FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError) as refused:
        request_from_record(path, {})
    assert message in str(refused.value) and "\n" not in str(refused.value)
    for use in (lambda: merge(models), lambda: weights_fingerprint(path.parent, file_hashes(path.parent))):
        try:
            use()
        except UserError as error:
            assert "\n" not in str(error)


def test_the_hash_of_a_file_follows_its_definition(models):
    """Names, dtypes, shapes and digests of stretches."""
    path = models / "math" / "model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    names = [name for name in json.loads(path.read_bytes()[8 : 8 + size]) if name != "__metadata__"]
    tensors, expected = load_file(path), []
    for name in names:
        values = np.ascontiguousarray(tensors[name].numpy())
        digest = xxhash.xxh3_128_digest(values.view(np.uint8).tobytes())
        expected.append([name, "F32", list(values.shape), xxhash.xxh3_128_hexdigest(digest)])
    assert content_hash(path) == xxhash.xxh3_128_hexdigest(json.dumps(expected).encode())
