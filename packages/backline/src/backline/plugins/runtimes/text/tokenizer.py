"""Turns texts into token ids, with Hugging Face's tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from backline.backends.runtime import import_runtime, loading
from backline.plugins.runtimes.text.folder import TextSettings


class Encoded:
    """Texts as token ids: `ids` and `types` have an array for each text. `cut` is the number of tokens of
    each text beyond the limit.
    """

    __slots__ = ("cut", "ids", "types")

    def __init__(self, ids: list[np.ndarray], types: list[np.ndarray] | None, cut: list[int]) -> None:
        self.ids = ids
        self.types = types
        self.cut = cut


class TextTokenizer:
    """The tokenizer of a model. May be called on several threads at once."""

    def __init__(self, settings: TextSettings) -> None:
        """Raises InvalidArgument if the file is not a tokenizer, and Internal if tokenizers is missing."""
        tokenizers = import_tokenizers()
        path = settings.tokenizer
        with loading(path, f"tokenizers {tokenizers.__version__}"):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_tokens)
        self.vocabulary: int = self._tokenizer.get_vocab_size()
        self._prompt = settings.prompt
        self._lowercase = settings.lowercase

    def encode(self, texts: Sequence[str], queries: Sequence[str] | None, *, types: bool) -> Encoded:
        """Encodes texts, or pairs of a query and a text, with special tokens. Releases the interpreter's
        lock.
        """
        texts = [self._given(text) for text in texts]
        pairs = texts if queries is None else list(zip(queries, texts, strict=True))
        found = self._tokenizer.encode_batch_fast(pairs)
        return Encoded(
            [np.array(one.ids, np.int64) for one in found],
            [np.array(one.type_ids, np.int64) for one in found] if types else None,
            [_beyond(one) if one.overflowing else 0 for one in found],
        )

    def _given(self, text: str) -> str:
        text = self._prompt + text
        return text.lower() if self._lowercase else text


def _beyond(encoding: Any) -> int:
    """Returns the number of tokens that truncation has removed."""
    return sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)


def import_tokenizers() -> Any:
    """Imports tokenizers, with one thread for each call: the server decides how many runs use its cores."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return import_runtime("tokenizers", what="text models need tokenizers", extra="embeddings")
