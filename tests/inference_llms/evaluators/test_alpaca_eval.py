"""AlpacaEval: the list of outputs that its judge takes."""

import json
import os
import shutil
import subprocess
import threading
from dataclasses import astuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scripts.paper_tables.evaluator_results import command_to_type, read_alpaca_eval

from inference_llms.tasks import alpaca_eval
from tests.inference_llms.support import (
    DATA,
    ROOT,
    golden,
    golden_sampling,
    needs_data,
    needs_golden,
    replay,
    write_rows,
)


@needs_golden
@needs_data
def test_prompt_sampling_and_rows_agree_with_the_published_scripts(tmp_path):
    expected = golden("alpaca_eval")
    examples = alpaca_eval.load_examples(DATA)
    assert astuple(alpaca_eval.SAMPLING) == golden_sampling("alpaca_eval")
    assert examples[0].prompt == expected["prompt_example"]
    assert len(examples) == expected["rows"]
    write_rows(
        tmp_path / "replay/alpaca_eval.jsonl",
        [{"id": example.id, "completion": f" reply {example.id} "} for example in examples],
    )
    score = replay(tmp_path, "--tasks", "alpaca_eval", "--data_dir", DATA)["alpaca_eval"]
    path = tmp_path / "out/save_gen_instruct_responses_results/single_model/alpaca_eval/model.json"
    written = json.loads(path.read_text())
    assert len(written) == score["examples"] == expected["rows"]
    assert list(written[0]) == list(expected["row_example"])
    assert {**written[0], "generator": "save_merge_models/x"} == expected["row_example"]
    assert [row["output"] for row in written] == [f" reply {position} " for position in range(len(written))]
    assert {row["generator"] for row in written} == {"some/model"}
    references = json.loads(path.with_name("model.references.json").read_text())
    assert [row["instruction"] for row in references] == [row["instruction"] for row in written]
    assert {row["generator"] for row in references} == {"text_davinci_003"}
    assert score["evaluator_command"].startswith(
        f"alpaca_eval --model_outputs {path} --reference_outputs {path.with_name('model.references.json')} "
        "--annotators_config weighted_alpaca_eval_gpt-4o-mini-2024-07-18 --fn_metric get_winrate --sort_by win_rate "
    )


class Judge(BaseHTTPRequestHandler):
    """Prefers the first answer that it is shown, as a server of OpenAI's kind."""

    def log_message(self, *words):
        pass

    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in (("m", -0.2), ("M", -1.7))]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "m"}}
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        said = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())


@pytest.mark.skipif(shutil.which("alpaca_eval") is None, reason="alpaca_eval is not installed")
def test_alpaca_eval_judges_a_slice_by_the_printed_command(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": n, "completion": f"answer {n}"} for n in range(2, 7)])
    options = ["--tasks", "alpaca_eval", "--data_dir", ROOT / "scripts/tiny_zoo/data", "--start_index", 2]
    score = replay(tmp_path, *options, "--end_index", 7)["alpaca_eval"]
    answers = tmp_path / "out/save_gen_instruct_responses_results/single_model/alpaca_eval/model.json"
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    variables = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": address,
    }
    command = command_to_type("alpaca_eval", [answers], score["evaluator_command"])
    done = subprocess.run(command, shell=True, env=os.environ | variables, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    found = read_alpaca_eval(answers)
    assert found.examples == 5 and f"{100 * found.score:.2f}" in done.stdout
    assert all(0.18 < value < 0.82 for value in found.values)
