"""Models by hub id: the real client and a small local hub."""

import subprocess
from pathlib import Path

import pytest

from tests.local_hub import ROOT, local_hub
from tests.local_hub import run_with_hub as run

ZOO = ROOT / "scripts" / "tiny_zoo"
COMMAND = (
    "import sys; from utils.errors import run_command_line; from utils.model_folders import find_model_folder; "
    "sys.exit(run_command_line(lambda: print(find_model_folder(sys.argv[1]))))"
)


@pytest.fixture
def hub():
    """The hub's address and its files, which a test may change."""
    files = {path.name: path.read_bytes() for path in (ZOO / "math").iterdir()}
    files["consolidated.00.pth"] = b"the same weights again"
    files["original/params.json"] = b"{}"
    files["additional_chat_templates/tool_use.jinja"] = b"a template"
    files["qwen.tiktoken"] = b"IQ== 0"
    with local_hub({"our/model": files}) as (address, _):
        yield address, files


def find(hub_id: str, address: str, cache: Path) -> subprocess.CompletedProcess:
    return run(["-c", COMMAND, hub_id], address, cache)


def test_a_download_leaves_out_second_copies_of_the_weights(hub, tmp_path):
    address, files = hub
    done = find("our/model", address, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder = Path(done.stdout.strip())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {n: content for n, content in files.items() if not n.startswith(("original/", "consolidated"))}

    nowhere = "http://127.0.0.1:9"
    offline = find("our/model", nowhere, tmp_path)
    assert offline.stdout == done.stdout, "without a connection, a complete download is used"
    (folder / "model.safetensors").unlink()
    incomplete = find("our/model", nowhere, tmp_path)
    assert incomplete.returncode == 2 and incomplete.stderr.count("\n") == 1 and "our/model" in incomplete.stderr


def test_inference_takes_a_hub_id(hub, tmp_path):
    words = ["-m", "inference_llms", "--load_model_path", "our/model", "--tasks", "gsm8k", "--end_index", 1]
    words += ["--data_dir", ZOO / "data", "--output_dir", tmp_path / "out", "--backend", "transformers"]
    done = run(words, hub[0], tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/save_scores/single_model/model.json").is_file(), "results have the model's name"


def test_an_adapter_is_downloaded(hub, tmp_path):
    address, files = hub
    files.clear()
    files.update({"adapter_config.json": b"{}", "adapter_model.bin": b"weights", "training_args.bin": b"no weights"})
    folder = Path(find("our/model", address, tmp_path).stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.bin"}


@pytest.mark.parametrize(("hub_id", "remedy"), [("our/gated", "accept its licence"), ("our/nothing", "check its name")])
def test_a_refusal_of_the_hub_is_reported_with_a_remedy(hub, tmp_path, hub_id, remedy):
    done = find(hub_id, hub[0], tmp_path)
    assert done.returncode == 2 and remedy in done.stderr and done.stderr.count("\n") == 1
