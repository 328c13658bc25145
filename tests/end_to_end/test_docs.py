"""The examples of docs/ run as written; links, paths and options exist."""

import importlib
import json
import re
import types

import numpy as np
import pytest
import torch

import merge_llms_instruct_math_code
from inference_llms import tasks
from model_merging_methods.describe import markdown
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_folders import merge_folders
from model_merging_methods.merge_parameters import mask_of, parameters_from_fields, parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.method import MaskPlace
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from promptbench import sst2
from promptbench.attack import AttackParts
from promptbench.search import search
from scripts.make_tables import main as make_tables
from scripts.paper_tables.run_cells import build_parser
from scripts.plot_figures import main as plot_figures
from tests.inference_llms.support import ROOT
from tests.scripts.paper_tables.support import read_scores

DOCS = ROOT / "docs"
ZOO = ROOT / "scripts" / "tiny_zoo"
FILES_OF_EXAMPLES = {
    "inference_llms/tasks/svamp.py",
    "promptbench/attacks/shouting.py",
    "model_merging_methods/masks/middle.py",
    "model_merging_methods/methods/arc.py",
}


def example(page: str, **names) -> types.SimpleNamespace:
    """The names that the page's block of Python defines, given other `names`."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return run_block(block, page, **names)


def run_block(block: str, page: str, **names) -> types.SimpleNamespace:
    namespace = dict(names)
    exec(compile(block, page, "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def test_the_custom_mask_and_method_merge(monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "add_a_method.md").read_text(), re.DOTALL | re.MULTILINE)
    mask, method = (run_block(block, "add_a_method.md") for block in blocks)
    values = torch.tensor([1.0, -4.0, 3.0, -2.0])
    masked = mask.middle.formula(values, MaskPlace((4,), 0, 0), smallest=0.25, largest=0.25)
    assert masked.tolist() == [0, 0, 3, -2]
    gram = np.array([[4.0, 1.0], [1.0, 9.0]])
    found = method.arc.formula(gram, t=0.3)
    assert found == pytest.approx(METHODS["slerp"].formula(gram, t=0.3, dot_threshold=0.9995))

    monkeypatch.setitem(MASKS, "middle", mask.middle)
    monkeypatch.setitem(METHODS, "arc", method.arc)
    finetuned = {role: ZOO / role for role in ("math", "code")}
    for name, parameters in {
        "plain": parameters_of("arc", t=0.3),
        "masked": parameters_of("arc", mask=mask_of("middle", largest=0.02)),
        "sum": parameters_of("task_arithmetic", mask=mask_of("middle"), mixup=Mixup((0.4, 0.6))),
    }.items():
        merge_folders(MergeRequest(ZOO / "base", finetuned, parameters), {"math": tmp_path / name})
        record = json.loads((tmp_path / name / "merge_record.json").read_text())
        assert parameters_from_fields(record["parameters"]) == parameters


def test_the_page_on_methods_is_up_to_date():
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == markdown(), (
        "run python -m model_merging_methods methods --markdown > docs/methods.md"
    )


def test_the_custom_task_loads_its_set_and_scores_answers(tmp_path):
    task = example("add_a_task.md").TASK
    rows = [{"question_concat": "Two and two?", "Answer": "4.0"}, {"question_concat": "Three less one?", "Answer": "2"}]
    (tmp_path / "svamp_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = task.load_examples(tmp_path)
    assert "Two and two?" in examples[0].prompt and task.name not in tasks.TASKS
    assert task.verdicts(examples, ["The answer is: 4.", "The answer is: 3"]) == [True, False]


def test_a_custom_task_has_a_row_in_the_tables(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "svamp", example("add_a_task.md").TASK)
    rows = [{"question_concat": f"{i} and one?", "Answer": str(i + 1)} for i in range(4)]
    (tmp_path / "svamp_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    merge = "--merge_math --merge_code --merging_method_name average_merging --tasks svamp"
    models = " ".join(f"--{role}_model {ZOO / role}" for role in ("math", "code"))
    words = f"{merge} {models} --pretrained_model {ZOO / 'base'} --data_dir {tmp_path} --output_dir {tmp_path}"
    merge_llms_instruct_math_code.main([*words.split(), "--backend", "transformers"])
    make_tables([str(tmp_path)])
    plot_figures([str(tmp_path)])
    (row,) = read_scores(tmp_path)
    assert (row["dataset"], row["metric"], row["status"], row["examples"]) == ("svamp", "accuracy", "ok", "4")
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_the_custom_attack_finds_the_best_prompt():
    attack = example("add_an_attack.md").open_attack(AttackParts(sst2.TASK))

    def score(prompts):
        return [0.4 if "FOLLOWING" in prompt else 0.8 if "following" in prompt else 0.7 for prompt in prompts]

    result = search(attack, sst2.TASK.prompt, sst2.TASK.protected_words, score)
    assert "FOLLOWING" in result.final_prompt and "'positive'" in result.final_prompt
    assert result.final_accuracy == 0.4


def test_the_custom_family_merges_value_by_value_and_loads_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tests" / "model_merging_methods")
    families = importlib.import_module("tests.model_merging_methods.checkpoints.test_aligned_models")
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    example("add_a_model_family.md", **vars(families))
    families.test_a_family_merges_value_by_value_and_loads_again(tmp_path, "olmo2", False)


def test_links_and_paths_in_the_pages_exist():
    pages = {page.name: page.read_text() for page in DOCS.glob("*.md")}
    for name, text in pages.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            is_elsewhere = link.startswith("https://")
            assert is_elsewhere or (DOCS / (link.partition("#")[0] or name)).is_file(), (name, link)
        for path in re.findall(
            r"`((?:scripts|inference_llms|promptbench|model_merging_methods|tests|utils|benchmarks)/[\w./]+)`", text
        ):
            assert path in FILES_OF_EXAMPLES or (ROOT / path).exists(), (name, path)


def test_the_page_on_tables_names_every_option():
    named = set(re.findall(r"--[a-z_]+", (DOCS / "paper_tables.md").read_text()))
    hidden = {"--cells", "--job", "--working_folder", "--help"}
    options = {word for action in build_parser()._actions for word in action.option_strings if word.startswith("--")}
    assert options - hidden <= named
