"""Describe methods and masks from their declarations: tables, the page of one, and docs/methods.md."""

import inspect
import textwrap
from collections.abc import Iterable, Sequence

from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import mask_name
from model_merging_methods.method import MaskMethod, Method, Option
from model_merging_methods.methods import METHODS
from utils.errors import UserError

WIDTH = 120
_PAPER_WIDTH, _OPTIONS_WIDTH = 34, 38
_MARKDOWN_COMMAND = "python -m model_merging_methods methods --markdown"

Declared = Method | MaskMethod


def methods_table() -> str:
    """All methods, then all masks: name, kind, number of models, options and paper, in at most 120 columns."""
    rows = [
        [one.name, _kind(one), _number_of_models(one), ", ".join(one.options) or "–", one.paper]
        for one in _everything()
    ]
    widths = [None, None, None, _OPTIONS_WIDTH, _PAPER_WIDTH]
    return _tabulated(rows, ["name", "kind", "models", "options", "paper"], widths)


def method_page(name: str) -> str:
    """The description of the method or mask of this name, in at most 120 columns."""
    found = [one for one in _everything() if one.name == mask_name(name.replace("-", "_"))]
    if not found:
        raise UserError(f"methods {name}: choose one of {', '.join(one.name for one in _everything())}")
    return "\n\n".join(_page(one) for one in found)


def markdown() -> str:
    """The text of docs/methods.md."""
    parts = [
        "# Methods and masks",
        f"This page is made by `{_MARKDOWN_COMMAND}`. With a NAME instead of `--markdown`, that command shows one "
        "method or mask.",
        "`--merging_method_name NAME` chooses a method. `--merging_method_name mask_merging --mask_strategy MASK "
        "--mask_apply_method NAME` masks the models first. [Add a method](add_a_method.md) shows how to write one.",
        "An option that takes one value per model may be given as `NAME=X`: `--density math=0.3 code=0.5`.",
        "## Methods",
        _markdown_table(METHODS.values()),
        "## Masks",
        _markdown_table(MASKS.values()),
    ]
    for one in _everything():
        facts = "\n".join(f"* {title}: {text}" for title, text in _facts(one))
        parts += [f"## {one.name}", *_paragraphs(one), facts]
        if one.options:
            parts.append(_markdown_rows(_OPTION_HEADER, [_code_first(row) for row in _option_rows(one)]))
    return "\n\n".join(parts) + "\n"


def _everything() -> list[Declared]:
    return [*METHODS.values(), *MASKS.values()]


def _kind(one: Declared) -> str:
    return "method" if isinstance(one, Method) else "mask"


def _number_of_models(one: Declared) -> str:
    if isinstance(one, MaskMethod):
        return "any"
    least, most = one.models
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def _facts(one: Declared) -> list[tuple[str, str]]:
    facts = [("Source", one.paper), ("Sees", one.sees.value)]
    if isinstance(one, MaskMethod):
        return [*facts, ("Random", "yes, `--seed` sets it" if one.is_random else "no")]
    reads = "depends on the options" if callable(one.reads_base) else "yes" if one.reads_base else "no"
    ratios = "replace the weights" if "weight" in one.options else "yes"
    return [
        *facts,
        ("Fine-tuned models", _number_of_models(one)),
        ("Reads the pretrained model", reads),
        ("Takes M3's ratios", ratios if one.takes_ratios else "no"),
        ("Takes a mask", "yes" if one.takes_mask else "no"),
    ]


_OPTION_HEADER = ("option", "values", "default", "meaning")


def _option_rows(one: Declared) -> list[list[str]]:
    return [
        [
            f"--[no-]{name}" if option.type is bool else f"--{name}",
            _values(option, _kind(one)),
            _default(option),
            option.about.text,
        ]
        for name, option in one.options.items()
    ]


def _values(option: Option, kind: str) -> str:
    if option.type is bool:
        return "on, off"
    if option.about.choices:
        return ", ".join(option.about.choices)
    by_model = option.is_per_model or (kind == "mask" and option.type is float)
    return option.range + (", or one per model" if by_model else "")


def _default(option: Option) -> str:
    if option.default is None:
        return "required"
    return {True: "on", False: "off"}[option.default] if option.type is bool else str(option.default)


def _paragraphs(one: Declared) -> list[str]:
    return [" ".join(text.split()) for text in (inspect.getdoc(one.formula) or "").split("\n\n")]


def _page(one: Declared) -> str:
    paragraphs = [textwrap.fill(text, WIDTH) for text in _paragraphs(one)]
    facts = "\n".join(textwrap.fill(f"{title}: {text}", WIDTH) for title, text in _facts(one))
    parts = [f"{one.name} ({_kind(one)})", *paragraphs, facts.replace("`", "")]
    if one.options:
        parts.append(_tabulated(_option_rows(one), _OPTION_HEADER, [None, 34, None, 46]))
    return "\n\n".join(parts)


def _tabulated(rows: Sequence[Sequence[str]], header: Sequence[str], widths: Sequence[int | None]) -> str:
    from tabulate import tabulate

    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True, maxcolwidths=list(widths))
    return "\n".join(line.rstrip() for line in table.splitlines())


def _markdown_table(declared: Iterable[Declared]) -> str:
    header, rows = ["name", "what it does", "source"], []
    for one in declared:
        rows.append([f"[{one.name}](#{one.name})", one.summary, one.paper])
        if isinstance(one, Method):
            rows[-1].insert(1, _number_of_models(one))
    return _markdown_rows(header if len(rows[0]) == 3 else [header[0], "models", *header[1:]], rows)


def _markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _code_first(row: Sequence[str]) -> list[str]:
    return [f"`{row[0]}`", *row[1:]]
