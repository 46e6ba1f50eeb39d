"""The handler for text classification."""

from __future__ import annotations

from typing import Any

import torch

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed
from backline.plugins.runtimes.torchserve.compat.ts.utils.util import map_class_to_label

from .text_handler import TextHandler


class TextClassifier(TextHandler):
    """A handler that classifies one text at a time and returns the probabilities of all classes by name. The
    model takes the vocabulary indices of the text's words and word pairs, and an offset.
    """

    ngrams = 2

    @timed
    def preprocess(self, data: Any) -> Any:
        """Returns the vocabulary indices of the first row's words and word pairs, and the words. Raises
        KeyError for a word that the vocabulary lacks.
        """
        text = data[0].get("data") or data[0].get("body")
        if isinstance(text, (bytes, bytearray)):
            text = text.decode("utf-8")
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        words = self._tokenize(self._remove_punctuation(self._remove_accented_characters(text)))
        pairs = [
            " ".join(words[start : start + size])
            for size in range(1, self.ngrams + 1)
            for start in range(len(words) - size + 1)
        ]
        return torch.as_tensor([self.source_vocab[word] for word in pairs], device=self.device), words

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return super().inference(data[0], torch.as_tensor([0], device=self.device))

    @timed
    def postprocess(self, data: Any) -> Any:
        return map_class_to_label(torch.softmax(data, dim=-1).tolist(), self.mapping)
