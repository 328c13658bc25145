"""The README's command lines, options, links and Python snippet work as written."""

import json
import re
import shlex

import pytest

import ood_robust_inference
from merge_llms_instruct_math_code import build_parser, main
from promptbench import run_attacks, sst2
from scripts import search_mixup
from tests.inference_llms.support import ROOT
from tests.scripts.paper_tables.support import TINY_MODELS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("adversarial_prompts", "search_mixup")]
ZOO = ROOT / "scripts" / "tiny_zoo"
LINES = re.findall(
    r"^    python merge_llms_instruct_math_code\.py (--merge.*--tensor_parallel_size 2.*)$", README, re.MULTILINE
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """The tiny models under the names of the paper's."""
    folder = tmp_path_factory.mktemp("models")
    for name, tiny in TINY_MODELS.items():
        (folder / name).symlink_to(ZOO / tiny)
    return folder


def test_the_paper_has_six_command_lines():
    assert len(LINES) == 6


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_of_the_paper_runs_as_written(line, models_dir, tmp_path):
    places = ["--models_dir", models_dir, "--data_dir", ZOO / "data", "--output_dir", tmp_path, "--end_index", 2]
    main([*shlex.split(line), *map(str, places), "--backend", "transformers"])
    (scores,) = (tmp_path / "save_scores" / "instruct_math").rglob("*.json")
    assert list(json.loads(scores.read_text())) == ["alpaca_eval", "gsm8k", "MATH"]


def test_every_option_in_the_readme_exists():
    builders = (build_parser, ood_robust_inference.build_parser, search_mixup.build_parser)
    parsers = [*(build() for build in builders), run_attacks.build_parser(sst2.TASK)]
    known = {word for parser in parsers for action in parser._actions for word in action.option_strings}
    # Options of `python -m inference_llms` and `model_merging_methods`, scripts/setup_env.sh, and pip.
    known |= {"--load_model_path", "--vllm", "--markdown", "--print_recipe", "--no"}
    evaluators = re.compile(r"`(alpaca_eval|evaluate_functional_correctness|accelerate launch)[^`]*`")
    named = set(re.findall(r"--[a-z_]+", evaluators.sub("", README + "".join(PAGES))))
    assert named <= known, named - known


def test_links_and_paths_in_the_readme_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 10
    for link in links:
        path, _, anchor = link.partition("#")
        text = (ROOT / (path or "README.md")).read_text(encoding="utf-8")
        headings = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()) for line in text.split("\n") if line[:1] == "#"]
        assert not anchor or anchor in [heading.replace(" ", "-") for heading in headings], link
    for path in re.findall(
        r"`((?:scripts|inference_llms|promptbench|model_merging_methods|tests|benchmarks)/)`", README
    ):
        assert (ROOT / path).is_dir(), path


def test_the_python_snippet_merges_two_folders(monkeypatch, tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for name in ("base", "instruct", "math"):
        (tmp_path / name).symlink_to(ZOO / name)
    (tmp_path / "recipe.yml").write_text("{merge_method: linear, models: [{model: base, parameters: {weight: 1}}]}")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    record = json.loads((tmp_path / "merged_with_m3" / "merge_record.json").read_text())
    assert record["parameters"]["mixup"]["weights"] == [0.6, 0.4]
