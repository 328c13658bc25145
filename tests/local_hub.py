"""A small hub on this machine, with the endpoints that a download uses."""

import functools
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Models = dict[str, dict[str, bytes]]  # the files of each model, by its id


class Hub(BaseHTTPRequestHandler):
    """Public models, and a gated one. Files are served with range requests if `in_parts`; `sent` counts their bytes by
    name."""

    def __init__(self, models: Models, sent: dict[str, int], in_parts: bool, *arguments):
        self.models, self.sent, self.in_parts = models, sent, in_parts
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.respond(with_body=False)

    def do_GET(self) -> None:
        self.respond(with_body=True)

    def respond(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if "our/gated" in path:
            return self.send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}", with_body)
        for hub_id, files in self.models.items():
            if path.startswith(f"/api/models/{hub_id}/tree/"):
                tree = [{"type": "file", "path": n, "size": len(c), "oid": self.tag(c)} for n, c in files.items()]
                return self.send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode(), with_body)
            if path.startswith(f"/api/models/{hub_id}"):
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                info = {"id": hub_id, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                return self.send(200, {"Content-Type": "application/json"}, json.dumps(info).encode(), with_body)
            name = path.split("/", 5)[5] if path.startswith(f"/{hub_id}/resolve/") else None
            if name in files:
                return self.send_file(name, files[name], with_body)
        return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)

    def send_file(self, name: str, content: bytes, with_body: bool) -> None:
        headers = {"ETag": f'"{self.tag(content)}"', "X-Repo-Commit": COMMIT}
        status, wanted = 200, self.headers.get("Range")
        if self.in_parts and wanted is not None and wanted.startswith("bytes=0-"):
            status, content = 206, content[: int(wanted.removeprefix("bytes=0-")) + 1]
        if with_body:
            self.sent[name] = self.sent.get(name, 0) + len(content)
        self.send(status, headers, content, with_body)

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


@contextmanager
def local_hub(models: Models, in_parts: bool = True) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the hub's address, and the bytes sent so far by file name."""
    sent: dict[str, int] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, models, sent, in_parts))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


def run_with_hub(words: list[object], address: str, cache: Path) -> subprocess.CompletedProcess:
    """Run Python with this hub and a separate cache."""
    environment = {
        "PATH": "/usr/bin:/bin", "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "*",
    }  # fmt: skip
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
