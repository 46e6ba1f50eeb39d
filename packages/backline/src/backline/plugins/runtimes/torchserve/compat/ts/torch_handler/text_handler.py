"""The base class of text handlers."""

from __future__ import annotations

import abc
import re
import string
import unicodedata
from pathlib import Path
from typing import Any

import torch

from .base_handler import BaseHandler

_TAGS = re.compile(r"<.*?>|&([a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")
#: English contractions, in the order in which they are expanded.
_SHORT_FORMS = [
    (re.compile(pattern, re.IGNORECASE), full)
    for pattern, full in (
        (r"\bcan't\b", "cannot"),
        (r"\bwon't\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"\bain't\b", "is not"),
        (r"\blet's\b", "let us"),
        (r"n't\b", " not"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
        (r"'m\b", " am"),
        (r"\b(he|she|it|that|there|what|where|who|how|why|when)'s\b", r"\1 is"),
    )
]


class TextHandler(BaseHandler, abc.ABC):
    """A handler that loads the vocabulary `source_vocab.pt`, a dictionary saved with torch.save. The file is
    read with `weights_only`, so that loading it cannot run code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.initialized = False
        self.source_vocab = torch.load(self.get_source_vocab_path(context), weights_only=True)
        self.initialized = True

    def get_source_vocab_path(self, ctx: Any) -> str:
        """Returns the path of the vocabulary. Raises RuntimeError if the archive has no vocabulary."""
        path = Path(ctx.system_properties["model_dir"]) / self.manifest["model"].get(
            "sourceVocab", "source_vocab.pt"
        )
        if not path.is_file():
            raise RuntimeError(
                "text handlers need a vocabulary: add source_vocab.pt to the archive with --extra-files"
            )
        return str(path)

    def _expand_contractions(self, text: str) -> str:
        for pattern, full in _SHORT_FORMS:
            text = pattern.sub(full, text)
        return text.replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_html_tags(self, text: str) -> str:
        return _TAGS.sub("", text)

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(str.maketrans("", "", string.punctuation))

    def _tokenize(self, text: str) -> list[str]:
        return text.split()
