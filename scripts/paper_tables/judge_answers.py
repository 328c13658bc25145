"""AlpacaEval: a judge's win rates; of the tiny models, for which there is none, agreement with the reference."""

import json
import shlex
from collections.abc import Sequence

from scripts.paper_tables.commands import ROOT, TINY_ZOO, Setting
from scripts.paper_tables.evaluator_results import agreement_file, alpaca_eval_folder
from scripts.paper_tables.to_judge import ToJudge, each, installed, run_evaluator
from utils.whole_files import write_json


def judge_answers(items: Sequence[ToJudge], setting: Setting) -> dict[str, str]:
    """Judge each file; returns why some were not, by key."""
    if setting.is_tiny:
        return _count_agreement(items)
    judge = installed("alpaca_eval")
    if judge is None:
        return {item.key: "alpaca_eval is not installed" for item in items}

    def call(item: ToJudge) -> None:
        words = shlex.split(item.command)[1:]
        run_evaluator([judge, *words, "--output_path", str(alpaca_eval_folder(item.files[0]))])

    return each(items, call)


def _count_agreement(items: Sequence[ToJudge]) -> dict[str, str]:
    rows = json.loads((ROOT / TINY_ZOO / "data" / "alpaca_eval.json").read_text(encoding="utf-8"))
    references = {row["instruction"]: row["output"] for row in rows}

    def count(item: ToJudge) -> None:
        answers = json.loads(item.files[0].read_text(encoding="utf-8"))
        agrees = [row["output"].strip() == references[row["instruction"]] for row in answers]
        found = {"agrees": agrees, "outputs": [row["output"] for row in answers]}
        write_json(agreement_file(item.files[0]), found)

    return each(items, count)
