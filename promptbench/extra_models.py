"""Models and files that some attacks need: word vectors, a masked language model, a sentence encoder, a tagger.

All of them run on the CPU, because the attacked model uses the GPUs.
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from promptbench.attack import AttackParts, Constraint, MissingPart
from promptbench.prompt_words import WORD, PromptWords
from utils.errors import UserError

if TYPE_CHECKING:
    from HanTa.HanoverTagger import HanoverTagger
    from torch import Tensor

WHERE_TO_GET_VECTORS = "word_vectors/counter-fitted-vectors.txt.zip of https://github.com/nmrksic/counter-fitting"

# Tags of the British National Corpus (C5), by their beginnings, as universal parts of speech (Petrov et al. 2012).
PART_OF_TAG = {
    **dict.fromkeys(("NN", "NP"), "noun"),
    "V": "verb",
    "AJ": "adjective",
    **dict.fromkeys(("AV", "XX"), "adverb"),
    "PN": "pronoun",
    **dict.fromkeys(("AT", "DP", "DT", "EX"), "determiner"),
    "PR": "adposition",
    **dict.fromkeys(("CR", "OR"), "numeral"),
    "CJ": "conjunction",
    **dict.fromkeys(("PO", "TO"), "particle"),
}
WORDS_BEFORE, WORDS_AFTER = 4, 3
TEXTS_AT_ONCE = 32  # in a batch of the sentence encoder


class WordVectors:
    """Words and the directions of their vectors.

    `words`: in file order, in lower case as in the counter-fitted set; the first of several duplicates counts.
    `vectors`: float32, words × dimensions, none of length 0.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        self._words = words
        self._directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self._row_of = {word: row for row, word in reversed(list(enumerate(words)))}

    def nearest(self, word: str, number: int, least_cosine: float = -1.0) -> list[str]:
        """The `number` other words with the largest cosines to `word`, without those below `least_cosine`.

        Nearest first, equal ones in file order, in the case of `word`: lower, upper or capitalized.
        Empty for a word without a vector.
        """
        row = self._row_of.get(word.lower())
        if row is None:
            return []
        cosines = self._directions @ self._directions[row]
        nearest = [other for other in np.argsort(-cosines, kind="stable").tolist() if other != row][:number]
        near = (_in_case_of(word, self._words[other]) for other in nearest if cosines[other] >= least_cosine)
        return [other for other in dict.fromkeys(near) if other != word]


def _in_case_of(example: str, word: str) -> str:
    if example.islower():
        return word.lower()
    if example.isupper() and len(example) > 1:
        return word.upper()
    if example[0].isupper() and (example[1:].islower() or len(example) == 1):
        return word.capitalize()
    return word


@functools.cache
def open_word_vectors(path: Path | None) -> WordVectors:
    """Read word vectors from a file with a word and its numbers on each line, separated by spaces.

    Raises MissingPart if there is no such file, and UserError with the line number for a malformed line.
    """
    if path is None or not path.is_file():
        problem = "--word_vectors is not given" if path is None else f"--word_vectors {path}: no such file"
        raise MissingPart(f"{problem}; download {WHERE_TO_GET_VECTORS}, unzip it and give the file")
    words: list[str] = []
    rows: list[np.ndarray] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            word, row = _read_vector(line, f"--word_vectors {path} line {number}")
            if rows and len(row) != len(rows[0]):
                raise UserError(
                    f"--word_vectors {path} line {number} has {len(row)} numbers where line 1 has {len(rows[0])}; "
                    "fix or remove the line"
                )
            words.append(word)
            rows.append(row)
    if not rows:
        raise UserError(f"--word_vectors {path} is empty; download {WHERE_TO_GET_VECTORS}")
    return WordVectors(words, np.stack(rows))


def _read_vector(line: bytes, place: str) -> tuple[str, np.ndarray]:
    word, *numbers = line.split() or [b""]
    try:
        row = np.array(numbers, dtype=np.float32)
        if 0 < np.linalg.norm(row) < np.inf:
            return word.decode(), row
    except ValueError:  # from a number, or from the word's bytes
        pass
    raise UserError(f"{place} is not a word and its numbers (finite, not all 0); fix or remove the line")


@contextmanager
def loading_part(option: str, path_or_hub_id: str, public_model: str) -> Iterator[bool]:
    """Report loading errors in one line: MissingPart if the model or a package is missing, UserError for a folder that
    cannot be loaded. Silences transformers.

    Yields whether to load from this machine only: for a folder, or if the hub does not answer (packages notice that
    only after a minute). `public_model`: the hub id of a suitable model.
    """
    from huggingface_hub import model_info

    from utils.transformers_configs import quiet_transformers

    named, is_folder = f"--{option} {path_or_hub_id}", Path(path_or_hub_id).is_dir()
    try:
        with quiet_transformers():
            is_local = is_folder
            if not is_folder:
                try:
                    model_info(path_or_hub_id)
                except Exception:  # the hub and the network raise many kinds
                    is_local = True
            yield is_local
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise _missing_package(error) from error
    except Exception as error:  # packages raise many unrelated errors
        reason = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{named} needs its own code, which is never run here; give another model ({reason})"
            ) from error
        if is_folder:
            raise UserError(
                f"{named} cannot be loaded ({type(error).__name__}: {reason}); download it again or give another model"
            ) from error
        raise MissingPart(
            f"{named}: no such folder, and not available from the hub; download https://huggingface.co/{public_model} "
            "on a machine with a connection and give its folder"
        ) from error


def _missing_package(error: ModuleNotFoundError) -> MissingPart:
    return MissingPart(f"the Python package {error.name} is not installed; run `pip install -e '.[attacks]'`")


class MaskedLanguageModel:
    """A masked language model that makes `number` guesses at each position of a text and reads each text once."""

    def __init__(self, path_or_hub_id: str, number: int):
        """Load the model. Raises MissingPart if it is missing, UserError for a folder that cannot be loaded."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        with loading_part("mask_lm", path_or_hub_id, AttackParts.mask_lm) as is_local:
            options = {"local_files_only": is_local, "trust_remote_code": False}
            self._tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, **options)
            model, loaded = AutoModelForMaskedLM.from_pretrained(
                path_or_hub_id, output_loading_info=True, dtype="float32", **options
            )
            # transformers itself would continue with random numbers for missing tensors.
            for name in sorted(loaded["missing_keys"]):
                raise UserError(f"--mask_lm {path_or_hub_id} lacks tensor {name}; give a masked language model")
            if self._tokenizer.mask_token is None or not self._tokenizer.is_fast:
                raise UserError(f"--mask_lm {path_or_hub_id}: its tokenizer has no mask; give a masked language model")
        self._model = model.eval()
        self._number = number
        self._guesses_of: dict[str, list[list[int]]] = {}

    def substitutes(self, prompt: PromptWords, index: int) -> list[str]:
        """The whole words among the model's guesses for the word at `index`, likeliest first, without that word itself
        in any spelling.

        As in BERT-Attack (Li et al. 2020) the model sees the word if it is one token of its vocabulary; otherwise it
        sees one mask. A whole word is a token that the tokenizer produces for that word there; parts of words,
        punctuation and special tokens such as [SEP] do not count. Empty beyond the longest text the model can read.
        """
        guesses = self._guesses_at_word(prompt, index)
        word = prompt.words[index].lower()
        lead = prompt.text[: prompt.places[index][0]][-1:]
        texts = {guess: self._tokenizer.decode([guess]).strip() for guess in guesses}
        return [text for guess, text in texts.items() if text.lower() != word and self._is_word(guess, text, lead)]

    def _guesses_at_word(self, prompt: PromptWords, index: int) -> list[int]:
        start, end = prompt.places[index]
        text, tokens = prompt.text, self._tokens(prompt.text, start, end)
        if len(tokens) > 1 or self._tokenizer.unk_token_id in tokens.values():
            text = prompt.text[:start] + self._tokenizer.mask_token + prompt.text[end:]
            tokens = self._tokens(text, start, start + len(self._tokenizer.mask_token))
        return [guess for position in tokens for guess in self._guesses(text)[position]]

    def _tokens(self, text: str, start: int, end: int) -> dict[int, int]:
        """The tokens that cover the text from `start` to `end`, by position."""
        encoded = self._encode(text, return_offsets_mapping=True)
        offsets, tokens = encoded["offset_mapping"][0].tolist(), encoded["input_ids"][0].tolist()
        return {i: tokens[i] for i, (first, last) in enumerate(offsets) if first < end and last > start}

    def _guesses(self, text: str) -> list[list[int]]:
        """The likeliest tokens at each position of a text, likeliest first."""
        import torch

        if text not in self._guesses_of:
            with torch.inference_mode():
                logits = self._model(**self._encode(text)).logits[0]
            self._guesses_of[text] = torch.argsort(logits, descending=True, stable=True)[:, : self._number].tolist()
        return self._guesses_of[text]

    def _encode(self, text: str, **options: bool) -> "dict[str, Tensor]":
        longest = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        return self._tokenizer(text, truncation=True, max_length=longest, return_tensors="pt", **options)

    def _is_word(self, token: int, text: str, lead: str) -> bool:
        is_one_word = WORD.fullmatch(text) is not None
        return is_one_word and self._tokenizer(lead + text, add_special_tokens=False)["input_ids"][-1:] == [token]


@dataclass(frozen=True)
class EncoderFiles:
    """The settings in a sentence-transformers folder that change what the transformer computes.

    `subfolder`: the transformer's folder. `longest`: tokens of a text that are read; None: all that the model can read.
    """

    subfolder: str = ""
    pooling: Literal["mean", "cls"] = "mean"
    longest: int | None = None
    in_lower_case: bool = False

    @classmethod
    def read(cls, path_or_hub_id: str, is_local: bool) -> "EncoderFiles":
        """Read the folder's JSON files; one without `modules.json` is a plain transformer with mean pooling.

        Raises UserError for modules, a pooling or a prompt that this encoder does not have.
        """
        from transformers.utils import cached_file

        def content(name: str, is_needed: bool = False) -> Any:
            options = {"local_files_only": is_local, "_raise_exceptions_for_missing_entries": is_needed}
            path = cached_file(path_or_hub_id, name, **options)
            return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

        modules = {_module_name(module["type"]): module["path"] for module in content("modules.json")}
        subfolder, pooling = modules.get("Transformer", ""), "mean"
        faults = {}
        if modules:
            faults["the modules"] = modules if modules.keys() - {"Normalize"} != {"Transformer", "Pooling"} else ()
        if "Pooling" in modules:
            poolings = _poolings(content(f"{modules['Pooling']}/config.json", is_needed=True))
            pooling = poolings[0]
            faults["the pooling"] = poolings if poolings not in (["mean"], ["cls"]) else ()
        prompt = content("config_sentence_transformers.json").get("default_prompt_name")
        faults["the default prompt"] = [prompt] if prompt else ()
        for fault, names in faults.items():
            if names:
                raise UserError(
                    f"--sentence_encoder {path_or_hub_id} has {fault} {', '.join(names)}; give an encoder that is a "
                    f"transformer with mean or cls pooling and no prompt, such as {AttackParts.sentence_encoder}"
                )
        options = content(f"{subfolder}/sentence_bert_config.json".lstrip("/"))
        return cls(subfolder, pooling, options.get("max_seq_length"), bool(options.get("do_lower_case")))


def _module_name(type_name: str) -> str:
    """The class, without the package's modules, which its versions name differently; a foreign class as it is."""
    return type_name.rpartition(".")[2] if type_name.startswith("sentence_transformers.") else type_name


def _poolings(config: dict[str, Any]) -> list[str]:
    """The poolings in a `config.json` of current (`pooling_mode`) or earlier (`pooling_mode_mean_tokens`) files."""
    named = config.get("pooling_mode")
    if named is None:
        flags = [key for key, is_on in config.items() if key.startswith("pooling_mode_") and is_on]
        named = [flag.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for flag in flags]
    return [named] if isinstance(named, str) else list(named) or ["mean"]


class SentenceEncoder:
    """Cosine similarities of texts; each text is encoded once."""

    def __init__(self, path_or_hub_id: str):
        """Load the model. Raises MissingPart if it is missing, UserError for a folder that cannot be loaded."""
        from transformers import AutoModel, AutoTokenizer

        with loading_part("sentence_encoder", path_or_hub_id, AttackParts.sentence_encoder) as is_local:
            self._files = EncoderFiles.read(path_or_hub_id, is_local)
            options = {"local_files_only": is_local, "trust_remote_code": False, "subfolder": self._files.subfolder}
            self._tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, **options)
            # In float32, because cosines must not depend on the precision of the file.
            model, loaded = AutoModel.from_pretrained(
                path_or_hub_id, output_loading_info=True, dtype="float32", **options
            )
            # transformers itself would continue with random numbers for missing tensors. Nothing reads BERT's pooler.
            for name in sorted(loaded["missing_keys"]):
                if not name.startswith("pooler."):
                    raise UserError(f"--sentence_encoder {path_or_hub_id} lacks tensor {name}; give a sentence encoder")
            self._model = model.eval()
            limits = (self._files.longest, getattr(model.config, "max_position_embeddings", None))
            self._tokenizer.model_max_length = min(
                self._tokenizer.model_max_length, *(limit for limit in limits if limit is not None and limit > 0)
            )
            self._encode(["a text"])  # a model that is not an encoder fails here
        self._directions: dict[str, np.ndarray] = {}

    def cosines(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The cosine of each pair of texts: float32, in [-1, 1] up to rounding. New texts are encoded in batches."""
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        new = sorted((text for text in texts if text not in self._directions), key=len)  # so that batches pad little
        for start in range(0, len(new), TEXTS_AT_ONCE):
            batch = new[start : start + TEXTS_AT_ONCE]
            self._directions.update(zip(batch, self._encode(batch), strict=True))
        return np.array([self._directions[one] @ self._directions[other] for one, other in pairs], np.float32)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        """The direction of each text."""
        import torch

        texts = [text.lower() for text in texts] if self._files.in_lower_case else list(texts)
        encoded = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        mask = encoded["attention_mask"]
        with torch.inference_mode():
            states = self._model(**encoded).last_hidden_state
            if self._files.pooling == "cls":
                vectors = states[torch.arange(len(texts)), mask.argmax(dim=1)]  # some tokenizers pad on the left
            else:
                vectors = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return torch.nn.functional.normalize(vectors, dim=1).numpy()


@functools.cache
def open_sentence_encoder(path_or_hub_id: str) -> SentenceEncoder:
    """The encoder, shared by all attacks of a run. Raises like `SentenceEncoder`."""
    return SentenceEncoder(path_or_hub_id)


def cosine_at_angular_similarity(similarity: float) -> float:
    """The cosine of two vectors whose angular similarity, 1 − arccos(cosine) / π, is this."""
    return math.cos((1 - similarity) * math.pi)


def similar_to_clean(encoder: SentenceEncoder, least_cosine: float) -> Constraint:
    """The constraint that a candidate's cosine to the clean prompt is at least this."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        return (encoder.cosines([(clean.text, candidate.text) for candidate in candidates]) >= least_cosine).tolist()

    return holds


def similar_around_change(encoder: SentenceEncoder, least_cosine: float, width: int) -> Constraint:
    """The constraint that the `width` words around the changed one have at least this cosine to those of the current
    prompt. Shorter candidates always pass, as in TextAttack 0.3.7."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        long = [candidate for candidate in candidates if len(candidate.words) >= width]
        places = [candidate.index_of_change(current) for candidate in long]
        pairs = [(window(current, i, width), window(new, i, width)) for new, i in zip(long, places, strict=True)]
        near = dict(zip((candidate.text for candidate in long), encoder.cosines(pairs) >= least_cosine, strict=True))
        return [bool(near.get(candidate.text, True)) for candidate in candidates]

    return holds


def window(prompt: PromptWords, index: int, width: int) -> str:
    """The text of `width` words (an odd number) around the one at `index`, shifted at the ends of the prompt to stay
    inside; the whole prompt if it has fewer words."""
    start = max(0, min(index - width // 2, len(prompt.words) - width))
    last = min(start + width, len(prompt.words)) - 1
    return prompt.text[prompt.places[start][0] : prompt.places[last][1]]


@functools.cache
def english_tagger() -> "HanoverTagger":
    """The Hannover Tagger with its own English model, trained on the British National Corpus."""
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ModuleNotFoundError as error:
        raise _missing_package(error) from error
    return HanoverTagger("morphmodel_en.pgz")


@functools.cache
def part_of_speech(before: tuple[str, ...], word: str, after: tuple[str, ...]) -> str:
    """The universal part of speech of a word between others; "other" for foreign words, letters and the like."""
    _, _, tag = english_tagger().tag_sent([*before, word, *after])[len(before)]
    return PART_OF_TAG.get(tag[:1], PART_OF_TAG.get(tag[:2], "other"))


def same_part_of_speech(clean: PromptWords, current: PromptWords, candidate: PromptWords) -> bool:
    """Whether the changed word has the part of speech of the clean prompt's word, in that prompt: between the four
    words before and the three after. Noun and verb may swap; the number of words may not change."""
    if len(candidate.words) != len(clean.words):
        return False
    index = candidate.index_of_change(current)
    before = clean.words[max(0, index - WORDS_BEFORE) : index]
    after = clean.words[index + 1 : index + 1 + WORDS_AFTER]
    parts = {part_of_speech(before, prompt.words[index], after) for prompt in (clean, candidate)}
    return len(parts) == 1 or parts == {"noun", "verb"}
