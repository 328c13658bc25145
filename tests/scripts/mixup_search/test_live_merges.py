"""Merges in a running engine have the same answers and bits as merges that the main job saves."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from inference_llms.engines.engine import Engine
from inference_llms.engines.open_engine import open_engine
from inference_llms.task import Task
from inference_llms.tasks import alpaca_eval, gsm8k
from model_merging_methods.candidate_weights import CandidateMerges
from model_merging_methods.merge_folders import merge_folders
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.mixup import Mixup
from scripts.mixup_search.live_merges import EngineSetup, LiveMerges
from tests.vllm_marks import two_workers, vllm_installed
from utils.errors import UserError

ZOO = Path(__file__).parents[3] / "scripts" / "tiny_zoo"
MODELS = {"instruct": ZOO / "instruct", "math": ZOO / "math"}
TASK_OF_ROLE = {"instruct": alpaca_eval.TASK, "math": gsm8k.TASK}
AVERAGE = parameters_of("average_merging", mixup=Mixup((0.4, 0.6)))
MASK = mask_of(weight_mask_rate=(0.1, 0.3), use_weight_rescale=True)
TIES = parameters_of("ties_merging", mask=MASK, mixup=Mixup((0.8, 0.2)))


def answers(engine: Engine, task: Task) -> dict[int, str]:
    prompts = [example.prompt for example in task.load_examples(ZOO / "data")[:12]]
    return dict(engine.complete(prompts, task.sampling))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[MergeParameters, dict[str, Path]]:
    """The folders that the main job saves of two merges, by role."""
    root, folders = tmp_path_factory.mktemp("saved"), {}
    for parameters in (AVERAGE, TIES):
        folders[parameters] = {role: root / parameters.method / role for role in MODELS}
        merge_folders(MergeRequest(ZOO / "base", MODELS, parameters), folders[parameters])
    return folders


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    """Folders without weights, by role."""
    folders = {role: tmp_path_factory.mktemp(role) for role in MODELS}
    for role, folder in folders.items():
        CandidateMerges(ZOO / "base", MODELS).write_model_files(folder, role, AVERAGE)
    return folders


BACKENDS = [
    "transformers",
    pytest.param("vllm", marks=[pytest.mark.vllm, vllm_installed, two_workers]),
]


@pytest.fixture(scope="module", params=BACKENDS)
def live(request, tokenizers) -> Iterator[tuple[str, Engine]]:
    workers = 2 if request.param == "vllm" else 1
    engine = open_engine(request.param, tokenizers["instruct"], workers, 1, has_weights=False)
    yield request.param, engine
    engine.close()


def test_merges_answer_as_when_they_are_saved_and_hold_the_same_bits(live, saved, tokenizers):
    backend, engine = live
    merges = CandidateMerges(ZOO / "base", MODELS)
    given = {}
    for parameters in (AVERAGE, TIES, AVERAGE):
        engine.replace_weights(merges.weights(parameters))
        checksum = engine.checksum()
        answered = {}
        for role, task in TASK_OF_ROLE.items():
            engine.take_tokenizer(tokenizers[role])
            answered[role] = answers(engine, task)
        assert given.setdefault(parameters, (checksum, answered)) == (checksum, answered)
    assert given[AVERAGE][0] != given[TIES][0]

    started = open_engine(backend, saved[TIES]["math"], 2 if backend == "vllm" else 1, 1)
    try:
        assert started.checksum() == given[TIES][0]
        assert answers(started, gsm8k.TASK) == given[TIES][1]["math"]
    finally:
        started.close()


@pytest.mark.parametrize("name", ["math/model.safetensors", "base/config.json"])
def test_a_search_stops_when_a_model_changes(tmp_path, name):
    for model in ("base", "instruct", "math"):
        shutil.copytree(ZOO / model, tmp_path / model)
    folders = {role: tmp_path / role for role in MODELS}
    states = MergeRequest(tmp_path / "base", folders, AVERAGE).input_states()
    with closing(LiveMerges(EngineSetup(tmp_path / "base", folders, {}, "transformers", states))) as merges:
        merges.load(AVERAGE, "math")
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=rf"{tmp_path / name}: was changed while it was being read"):
            merges.load(TIES, "math")
