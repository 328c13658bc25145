"""LoRA adapters are merged as the fine-tunes that they stand for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import save_model
from transformers import AutoModelForCausalLM

from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import read_record, request_from_record
from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest
from utils.errors import UserError

MERGES = {
    "average": MergeParameters("average_merging"),
    "task arithmetic": MergeParameters("task_arithmetic"),
    "TIES": MergeParameters("ties_merging"),
    "DARE": MergeParameters("task_arithmetic", mask=Mask(0.5, use_weight_rescale=True)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base; an adapter of it (`math`), the fine-tune that the adapter stands for (`whole`), another (`code`)."""
    root = tmp_path_factory.mktemp("models")
    base = save_model(root / "base", seed=0)
    save_model(root / "code", seed=1, base=base)
    torch.manual_seed(2)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    adapted.save_pretrained(root / "math")
    adapted.merge_and_unload().save_pretrained(root / "whole")
    for path in base.glob("token*"):
        shutil.copy(path, root / "whole")
    return root


def merge(models: Path, target: Path, parameters: MergeParameters, math: str, **work) -> dict[str, torch.Tensor]:
    request = MergeRequest(models / "base", {"math": models / math, "code": models / "code"}, parameters)
    merge_models(request, {"math": target}, work=MergeWork(**work))
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("parameters", MERGES.values(), ids=MERGES)
def test_an_adapter_merges_as_the_whole_fine_tune_does(models, tmp_path, parameters):
    found = merge(models, tmp_path / "adapter", parameters, "math")
    expected = merge(models, tmp_path / "whole", parameters, "whole")
    assert found.keys() == expected.keys()
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert all(
        torch.allclose(found[n], expected[n], atol=1e-6) for n in different if parameters.method != "ties_merging"
    )
    assert not any("k_proj" in name or "lm_head" in name for name in different), "the adapter leaves these, or has them"


def test_an_adapter_merges_to_the_same_bytes_however_blocks_are_cut(models, tmp_path):
    reference = merge(models, tmp_path / "reference", MERGES["DARE"], "math", threads=1)
    cut = merge(models, tmp_path / "cut", MERGES["DARE"], "math", threads=3, block_size=7)
    assert all(torch.equal(reference[name], cut[name]) for name in reference)


def test_a_record_tells_an_adapter_s_files_and_makes_the_merge_again(models, tmp_path):
    merge(models, tmp_path / "first", MERGES["average"], "math")
    record = tmp_path / "first" / "merge_record.json"
    files = next(entry for entry in read_record(record)["inputs"] if entry["role"] == "math")["files"]
    assert [file["name"] for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    merge_models(request_from_record(record, {}), {"math": tmp_path / "again"}, made_from=record)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()


def test_an_average_of_adapters_notices_another_base(models, tmp_path):
    for name in ("base", "math", "code"):
        shutil.copytree(models / name, tmp_path / name)
    merge(tmp_path, tmp_path / "merged", MERGES["average"], "math")
    save_model(tmp_path / "base", seed=5)
    with pytest.raises(UserError, match="another run"):
        merge(tmp_path, tmp_path / "merged", MERGES["average"], "math")


def test_an_adapter_of_another_model_is_told_in_one_line(models, tmp_path):
    for name in ("base", "math", "code"):
        shutil.copytree(models / name, tmp_path / name)
    config = json.loads((tmp_path / "math" / "adapter_config.json").read_text())
    (tmp_path / "math" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match=r"math: .*use_dora.*merge_and_unload") as error:
        merge(tmp_path, tmp_path / "merged", MERGES["average"], "math")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "math", "code"}
