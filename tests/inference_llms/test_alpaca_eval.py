"""AlpacaEval: the list of outputs that its judge takes."""

import json
from dataclasses import astuple

from inference_llms import alpaca_eval
from tests.inference_llms.support import (
    DATA,
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
