"""A stand-in for a judge's server with OpenAI's interface, on this machine: it prefers the first answer it is shown."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PREFERRED = {"m": -0.2, "M": -1.7}  # log-probabilities


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": model, "object": "model"} for model in ("judge",)]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in PREFERRED.items()]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "m"},
            "finish_reason": "stop",
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        about = {"id": "1", "object": "chat.completion", "created": 1, "model": request["model"]}
        self.reply({**about, "choices": [choice], "usage": usage})

    def reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def judge_server() -> Iterator[tuple[str, list[dict]]]:
    """Yield the server's base URL and the requests that it answered."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
