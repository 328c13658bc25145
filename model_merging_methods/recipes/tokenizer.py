"""The tokenizer and chat template that a recipe asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from model_merging_methods.recipes.reading import Node, choice
from model_merging_methods.recipes.references import ModelReference, read_model

CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
TOKENIZER_KEYWORDS = ("union", "base")


@dataclass(frozen=True)
class TokenSource:
    """Where the embedding of a token comes from. kind: "zero", "model" (its row of this token), "model_token" (its row
    of another token, by text or id), or "default" (the usual rule). force: even where an input has the token."""

    kind: str
    model: ModelReference | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer to build. source: "union", "base" or a model."""

    source: str | ModelReference
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


def read_chat_template(node: Node) -> str:
    template = node.text()
    if template not in CHAT_TEMPLATES and "{" not in template:
        raise node.error(f"{template} is neither a known template nor Jinja; {choice(template, CHAT_TEMPLATES)}")
    if template not in CHAT_TEMPLATES:
        from jinja2 import Environment, TemplateSyntaxError

        without_marks = re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template)  # a tag of transformers' own
        try:
            Environment(extensions=["jinja2.ext.loopcontrols"]).parse(without_marks)
        except TemplateSyntaxError as error:
            raise node.error(f"is not Jinja ({error.message}); correct it") from None
    return template


def read_tokenizer(entries: Mapping[str, Node]) -> Tokenizer | None:
    if "tokenizer_source" in entries:
        if "tokenizer" in entries:
            raise entries["tokenizer"].error("is given beside tokenizer_source; remove one of them")
        return Tokenizer(_read_tokenizer_source(entries["tokenizer_source"], entries))
    if "tokenizer" not in entries:
        return None
    block = entries["tokenizer"].mapping("source", "pad_to_multiple_of", "tokens")
    padding = block["pad_to_multiple_of"].typed(int) if "pad_to_multiple_of" in block else None
    if padding is not None and padding < 1:
        raise block["pad_to_multiple_of"].error(f"is {padding}; give a number from 1 on")
    tokens = block["tokens"].entries() if "tokens" in block else {}
    return Tokenizer(
        _read_tokenizer_source(block["source"], entries) if "source" in block else "union",
        {token: _read_token(node) for token, node in tokens.items()},
        padding,
    )


def _read_tokenizer_source(node: Node, entries: Mapping[str, Node]) -> str | ModelReference:
    if node.value == "base" and "base_model" not in entries:
        raise node.error("base is asked for, but there is no base_model; add one, or write union")
    return node.value if node.value in TOKENIZER_KEYWORDS else read_model(node)


def _read_token(node: Node) -> TokenSource:
    entries = node.mapping("source", "force")
    force = "force" in entries and bool(entries["force"].typed(bool))
    if "source" not in entries:
        return TokenSource("default", force=force)
    source = entries["source"]
    if not isinstance(source.value, dict) or "kind" not in source.value:
        return TokenSource("model", read_model(source), force=force)
    keys = source.mapping("kind", "model", "token", "token_id")
    kind = keys["kind"].chosen(("zero", "model_token"))
    if kind == "zero":
        return TokenSource("zero", force=force)
    if "model" not in keys or ("token" in keys) == ("token_id" in keys):
        raise source.error("model_token needs model, and either token or token_id; correct these")
    return TokenSource(
        "model_token",
        read_model(keys["model"]),
        keys["token"].text() if "token" in keys else None,
        keys["token_id"].typed(int) if "token_id" in keys else None,
        force,
    )
