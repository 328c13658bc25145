"""Models by hub id: the real client and a small local hub."""

import functools
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "scripts" / "tiny_zoo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMAND = (
    "import sys; from utils.errors import run_command_line; from utils.model_folders import find_model_folder; "
    "sys.exit(run_command_line(lambda: print(find_model_folder(sys.argv[1]))))"
)


class Hub(BaseHTTPRequestHandler):
    """The endpoints of the hub that a download uses, for a public model and a gated one."""

    def __init__(self, files: dict[str, bytes], *arguments):
        self.files = files
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.respond(with_body=False)

    def do_GET(self) -> None:
        self.respond(with_body=True)

    def respond(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if "our/gated" in path:
            self.send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}", with_body)
        elif path.startswith("/api/models/our/model/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": self.tag(c)} for n, c in self.files.items()]
            self.send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode(), with_body)
        elif path.startswith("/api/models/our/model"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "our/model", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(info).encode(), with_body)
        elif path.startswith("/our/model/resolve/") and path.split("/", 5)[5] in self.files:
            content = self.files[path.split("/", 5)[5]]
            self.send(200, {"ETag": f'"{self.tag(content)}"', "X-Repo-Commit": COMMIT}, content, with_body)
        else:
            self.send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)

    @staticmethod
    def tag(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    def send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub():
    """The hub's address and its files, which a test may change."""
    files = {path.name: path.read_bytes() for path in (ZOO / "math").iterdir()}
    files["consolidated.00.pth"] = b"the same weights again"
    files["original/params.json"] = b"{}"
    files["additional_chat_templates/tool_use.jinja"] = b"a template"
    files["qwen.tiktoken"] = b"IQ== 0"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def run(words: list[object], address: str, cache: Path) -> subprocess.CompletedProcess:
    environment = {
        "PATH": "/usr/bin:/bin", "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "*",
    }  # fmt: skip
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


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
