"""Words that may stand for a word, by a masked language model."""

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from promptbench.attack import AttackParts
from promptbench.model_parts import part_of_attack
from promptbench.prompt_words import PromptWords, cut_words
from utils.errors import UserError


class MaskedLanguageModel:
    """A masked language model, which runs on the CPU, reads each text once and makes `number` guesses at each place."""

    def __init__(self, path_or_hub_id: str, number: int):
        """Load the model. Raises MissingPart where there is none, UserError for a folder that cannot be loaded."""
        with part_of_attack("mask_lm", path_or_hub_id, AttackParts.mask_lm) as here:
            options = {"local_files_only": here, "trust_remote_code": False}
            self._tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, **options)
            model, found = AutoModelForMaskedLM.from_pretrained(
                path_or_hub_id, output_loading_info=True, dtype="float32", **options
            )
            # transformers itself would go on with random numbers in their place.
            for name in sorted(found["missing_keys"]):
                raise UserError(f"--mask_lm {path_or_hub_id} lacks tensor {name}; give a masked language model")
            if self._tokenizer.mask_token is None or not self._tokenizer.is_fast:
                raise UserError(f"--mask_lm {path_or_hub_id}: its tokenizer has no mask; give a masked language model")
        self._model = model.eval()
        self._number = number
        self._read: dict[str, list[list[int]]] = {}

    def substitutes(self, prompt: PromptWords, index: int) -> list[str]:
        """The whole words among the model's guesses at the word at `index`, the likeliest first and without that word
        itself, however it is written.

        The model sees the word, as in BERT-Attack (Li et al. 2020), if that is one piece of its vocabulary; in place of
        any other word it sees one mask. A whole word is a piece that the tokenizer makes of it in that place,
        so no part of a word, no sign and no token of its own such as [SEP]. None for a word beyond the text that the
        model can read.
        """
        guesses = self._guesses_at_word(prompt, index)
        word = prompt.words[index].lower()
        lead = prompt.text[: prompt.places[index][0]][-1:]
        texts = {guess: self._tokenizer.decode([guess]).strip() for guess in guesses}
        return [text for guess, text in texts.items() if text.lower() != word and self._is_word(guess, text, lead)]

    def _guesses_at_word(self, prompt: PromptWords, index: int) -> list[int]:
        start, end = prompt.places[index]
        text, pieces = prompt.text, self._pieces(prompt.text, start, end)
        if len(pieces) > 1 or self._tokenizer.unk_token_id in pieces.values():
            text = prompt.text[:start] + self._tokenizer.mask_token + prompt.text[end:]
            pieces = self._pieces(text, start, start + len(self._tokenizer.mask_token))
        return [guess for place in pieces for guess in self._guesses(text)[place]]

    def _pieces(self, text: str, start: int, end: int) -> dict[int, int]:
        """Positions of the tokens that cover the text from `start` to `end`, and the tokens."""
        encoded = self._encode(text, return_offsets_mapping=True)
        places, tokens = encoded["offset_mapping"][0].tolist(), encoded["input_ids"][0].tolist()
        return {i: tokens[i] for i, (first, last) in enumerate(places) if first < end and last > start}

    def _guesses(self, text: str) -> list[list[int]]:
        """Tokens that the model puts at each place of a text, the likeliest first."""
        if text not in self._read:
            with torch.inference_mode():
                logits = self._model(**self._encode(text)).logits[0]
            self._read[text] = torch.argsort(logits, descending=True, stable=True)[:, : self._number].tolist()
        return self._read[text]

    def _encode(self, text: str, **options: bool) -> dict[str, torch.Tensor]:
        longest = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        return self._tokenizer(text, truncation=True, max_length=longest, return_tensors="pt", **options)

    def _is_word(self, token: int, text: str, lead: str) -> bool:
        if cut_words(text) != [(text, 0, len(text))]:
            return False
        return self._tokenizer(lead + text, add_special_tokens=False)["input_ids"][-1:] == [token]
