"""From a text to the token numbers of a backbone, by the backbone's own tokeniser."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dna_probe.errors import DataError, UnreadableSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512
# Parts of a stored tokeniser that tell how it was called.
_CALLS = ("truncation", "padding")
_TRIAL = "The quick brown fox jumps over the lazy dog while seven grey geese cross the river at dawn."


@dataclass(frozen=True, eq=False)
class TextPreprocessing:
    """What a tokeniser makes of a text: its token numbers, special tokens included, cut at ``max_length``.

    Attributes:
        tokeniser: of the Hugging Face library ``transformers``.
        max_length: tokens of a text that are read; what lies behind them is left out.
    """

    tokeniser: PreTrainedTokenizerBase
    max_length: int = MAX_LENGTH
    modality: ClassVar[str] = "text"

    def __post_init__(self):
        most = min(self.max_length, getattr(self.tokeniser, "model_max_length", None) or self.max_length)
        if most < 8:
            raise DataError(f"max_length = {self.max_length} leaves no text to read", "", "Give at least 8 tokens")
        object.__setattr__(self, "max_length", int(most))

    def load(self, source: Any, name: str = "the text") -> np.ndarray:
        """Token numbers, int64 (tokens,). Raises ``UnreadableSample``."""
        from dna_probe.texts.reading import read_text

        tokens = self._tokens(read_text(source, name))
        if len(tokens) <= self.special_tokens:
            raise UnreadableSample(name, "no token is left of it")
        return tokens

    def trial(self, count: int) -> np.ndarray:
        """A sentence, its words turned around from row to row, so that rows differ and have one length."""
        tokens = self._tokens(_TRIAL)
        inside = slice(1, -1)
        rows = np.tile(tokens, (count, 1))
        for number in range(1, count):
            rows[number, inside] = np.roll(tokens[inside], number)
        return rows

    @cached_property
    def special_tokens(self) -> int:
        return int(self.tokeniser.num_special_tokens_to_add(pair=False))

    @cached_property
    def class_token(self) -> bool:
        """Whether the first token of every text is a class token."""
        first = getattr(self.tokeniser, "cls_token_id", None)
        return first is not None and int(self._tokens(_TRIAL)[0]) == first

    def _tokens(self, text: str) -> np.ndarray:
        found = self.tokeniser(text, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
        return np.asarray(found, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """What tells this tokeniser from another; the tokeniser itself comes with the backbone."""
        return {
            "modality": self.modality,
            "tokeniser": type(self.tokeniser).__name__,
            "sha256": self._content_hash,
            "max_length": self.max_length,
        }

    @cached_property
    def _content_hash(self) -> str:
        fast = getattr(self.tokeniser, "backend_tokenizer", None)
        if fast is None:
            content = repr(sorted(self.tokeniser.get_vocab().items(), key=lambda pair: pair[1]))
        else:
            # How it cuts and pads is left in it by whoever called it last.
            kept = {name: part for name, part in json.loads(fast.to_str()).items() if name not in _CALLS}
            content = json.dumps(kept, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()
