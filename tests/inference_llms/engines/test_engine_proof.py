"""A live engine proves that it computes with the weights that it was given."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_llms.engines.engine_proof import ScoredText, check_against
from tests.vllm_marks import vllm_installed
from utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def exact() -> torch.Tensor:
    """Log-probabilities of 10 tokens after the first, in a vocabulary of 50."""
    return (3 * torch.randn(10, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)


def text_of(scores: torch.Tensor) -> ScoredText:
    """The likeliest tokens, of which the first four are the prompt."""
    tokens = [0, *scores.argmax(1).tolist()]
    return ScoredText(tokens, 4, scores.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist())


def test_rounding_is_accepted(exact):
    rounded = exact.bfloat16().float()
    check_against([text_of(exact)], [exact], [exact])
    check_against([replace(text_of(exact), log_probabilities=text_of(rounded).log_probabilities)], [exact], [rounded])


def less_likely(text: ScoredText, exact: torch.Tensor) -> ScoredText:
    return replace(text, log_probabilities=[number - 0.05 for number in text.log_probabilities])


def other_completion(text: ScoredText, exact: torch.Tensor) -> ScoredText:
    tokens = [*text.tokens[:4], *exact[3:].argmin(1).tolist()]
    return replace(text_of(exact), tokens=tokens, log_probabilities=_scores(tokens, exact))


def not_a_number(text: ScoredText, exact: torch.Tensor) -> ScoredText:
    return replace(text, log_probabilities=[float("nan")] * 10)


def _scores(tokens: list[int], exact: torch.Tensor) -> list[float]:
    return exact.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (less_likely, "log-probabilities"),
        (other_completion, "completions"),
        (not_a_number, "log-probabilities"),
    ],
)
def test_what_rounding_does_not_explain_stops_the_search(exact, changed, named):
    with pytest.raises(UserError, match=f"computes other {named} than transformers.*--backend transformers") as stopped:
        check_against([changed(text_of(exact), exact)], [exact], [exact.bfloat16().float()])
    assert "\n" not in str(stopped.value)


@pytest.mark.vllm
@vllm_installed
def test_vllm_computes_with_the_weights_it_was_given_last(tmp_path):
    command = [sys.executable, "-m", "tests.inference_llms.live_kinds", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 3
    for kind in found:
        assert kind["given weights"] == kind["given others"] == "proved", kind
        if "tied" in kind["kind"]:  # else the check would not see an old head
            assert "computes other log-probabilities" in kind["without the tied layers"], kind
