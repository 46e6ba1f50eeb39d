"""The backend for text models: a tokenizer, a network in ONNX, and what becomes of the network's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import numpy as np
from msgspec.structs import replace

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, Backend, LoadedModel, LoadOptions, gpus_of
from backline.backends.parameters import Parameters
from backline.backends.registry import find_backend
from backline.backends.runtime import decode
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Gpus
from backline.plugins.runtimes.text.folder import PARAMETERS, Pooling, TextSettings, read_settings
from backline.plugins.runtimes.text.groups import MAX_TOKENS, divide
from backline.plugins.runtimes.text.tokenizer import Encoded, TextTokenizer, import_tokenizers
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

_IDS, _MASK, _TYPES, _POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
#: Outputs that are an embedding of each text already, which therefore need no pooling.
_POOLED = ("sentence_embedding", "text_embeds")
#: The maximum number of tokens of a run on a GPU.
_MAX_GPU_TOKENS = 16_384
#: The lengths of the two runs that are timed.
_SHORT, _LONG = 8, 64


class TextBackend:
    """The backend for folders with tokenizer.json and a network in ONNX."""

    name: ClassVar[str] = "text"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs that the ONNX backend can use. See GpuBackend."""
        settings, _ = _read(path, config)
        return gpus_of(_onnx(), settings.network, _config_of_network(config))

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TextModel:
        """Loads the tokenizer and the network. Raises InvalidArgument if a file is missing or malformed, or
        if the network has inputs or outputs that do not fit its task.
        """
        import_tokenizers()  # what is missing is reported before what is wrong
        settings, warnings = _read(path, config)
        tokenizer = TextTokenizer(settings)
        network = _onnx().load(settings.network, _config_of_network(config), options)
        most = MAX_TOKENS if options.device == CPU else _MAX_GPU_TOKENS
        # The ONNX backend returns a LoadedModel.
        model = TextModel(config.name, settings, tokenizer, network, most)  # type: ignore[arg-type]
        model.signature = agree(path, model.signature, config)
        model.warnings = (*warnings, *model.warnings)
        return model


def _read(path: Path, config: ModelConfig) -> tuple[TextSettings, tuple[str, ...]]:
    own = {key: text for key, text in config.parameters.items() if key in PARAMETERS}
    parameters = Parameters(replace(config, parameters=own), TextBackend.name, PARAMETERS)
    return read_settings(path, parameters), parameters.warnings


def _config_of_network(config: ModelConfig) -> ModelConfig:
    """Returns the configuration for the network, whose tensors are not those that clients see."""
    parameters = {key: text for key, text in config.parameters.items() if key not in PARAMETERS}
    return replace(
        config,
        backend="onnxruntime",
        inputs=(),
        outputs=(),
        max_batch_size=None,
        joining=None,
        parameters=parameters,
    )


def _onnx() -> Backend:
    entry = find_backend("onnxruntime")
    if entry is None:
        raise InvalidArgument(
            "text models need the backend 'onnxruntime', which is not there: install Backline again"
        )
    return entry.backend()


class TextModel:
    """A text model: LoadedModel with texts as inputs.

    Each run tokenises its texts, divides them by length into runs of the network, and reduces the network's
    output to one row for each text.
    """

    #: See UnboundedModel.
    unbounded = "a text may have any number of tokens"

    def __init__(
        self, name: str, settings: TextSettings, tokenizer: TextTokenizer, network: LoadedModel, most: int
    ) -> None:
        """`most` is the maximum number of tokens in a run of several texts."""
        self._name = name
        self._settings = settings
        self._tokenizer = tokenizer
        self._network = network
        self._most = most
        self._feeds = {spec.name: spec.datatype.dtype for spec in network.signature.inputs}
        self._check_inputs(settings.network)
        self._output, wide = self._choose_output(settings.network)
        self.signature = _signature(settings, wide)
        self.threads_per_run = network.threads_per_run
        self.warnings = network.warnings
        #: What a run costs besides its tokens, in tokens; None until it is measured.
        self._overhead: float | None = None

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs one batch; see LoadedModel. Texts that are too long are cut; `truncated` says by how much."""
        encoded, known = self._encode(inputs)
        rows = self._rows(encoded)
        rows[~known] = np.nan
        tokens = np.fromiter(map(len, encoded.ids), np.int32, len(encoded.ids))
        tokens[~known] = -1
        found = {
            "tokens": tokens,
            "truncated": np.array(encoded.cut, np.int32),
            "embedding": rows,
            "probabilities": rows,
            "score": rows.reshape(-1),
        }
        return [found[name] for name in outputs]

    def spread(self, threads: int) -> TextModel | None:
        """Loads a copy whose runs use several threads; see SpreadableModel."""
        spread: Callable[[int], LoadedModel | None] | None = getattr(self._network, "spread", None)
        network = None if spread is None else spread(threads)
        if network is None:
            return None
        return TextModel(self._name, self._settings, self._tokenizer, network, self._most)

    def close(self) -> None:
        self._network.close()

    def _encode(self, inputs: Mapping[str, np.ndarray]) -> tuple[Encoded, np.ndarray]:
        """Returns the tokens of each row, and which rows have only tokens of the vocabulary."""
        given = inputs.get("token_ids")
        if given is not None:
            return self._encode_ids(given)
        texts = inputs.get("text")
        if texts is None:
            raise InvalidArgument(f"model '{self._name}' needs the input 'text' or 'token_ids'")
        queries = inputs.get("query")
        encoded = self._tokenizer.encode(
            decode(self._name, "text", texts).reshape(-1).tolist(),
            None if queries is None else decode(self._name, "query", queries).reshape(-1).tolist(),
            types=_TYPES in self._feeds,
        )
        return encoded, np.ones(len(encoded.ids), np.bool_)

    def _encode_ids(self, given: np.ndarray) -> tuple[Encoded, np.ndarray]:
        """Takes ids as they are: special tokens are the client's. A row ends before its first -1."""
        known = (given >= -1) & (given < self._tokenizer.vocabulary)
        valid: np.ndarray = np.all(known, axis=1)
        lengths = np.where((given < 0).any(axis=1), (given < 0).argmax(axis=1), given.shape[1])
        most = self._settings.max_tokens
        ids = [
            row[: min(length, most)].astype(np.int64) if good and length else np.zeros(1, np.int64)
            for row, length, good in zip(given, lengths.tolist(), valid.tolist(), strict=True)
        ]
        cut = np.maximum(lengths - most, 0).tolist()
        return Encoded(ids, None, cut), valid & (lengths > 0)

    def _rows(self, encoded: Encoded) -> np.ndarray:
        """Returns the row of each text: an embedding, probabilities, or a score."""
        lengths = [len(ids) for ids in encoded.ids]
        if len(lengths) > 1 and self._overhead is None:
            self._overhead = self._measure()
        rows: np.ndarray | None = None
        for places in divide(lengths, self._overhead or 0.0, self._most):
            found = self._reduce(*self._run([encoded.ids[place] for place in places], encoded, places))
            if rows is None:
                rows = np.empty((len(lengths), *found.shape[1:]), np.float32)
            rows[places] = found
        assert rows is not None, "a batch has at least one text"
        return rows

    def _run(
        self, ids: list[np.ndarray], encoded: Encoded, places: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs the network on texts padded to one length. Returns its output and the attention mask."""
        longest = max(map(len, ids))
        mask = np.zeros((len(ids), longest), np.int64)
        padded = np.full((len(ids), longest), self._settings.pad_token, np.int64)
        for row, one in enumerate(ids):
            mask[row, : len(one)] = 1
            padded[row, : len(one)] = one
        feeds = {_IDS: padded, _MASK: mask}
        if _TYPES in self._feeds:
            types = np.zeros_like(padded)
            for row, place in enumerate(places if encoded.types is not None else ()):
                types[row, : len(ids[row])] = encoded.types[place]  # type: ignore[index]
            feeds[_TYPES] = types
        if _POSITIONS in self._feeds:
            feeds[_POSITIONS] = np.broadcast_to(np.arange(longest), padded.shape)
        feeds = {name: np.ascontiguousarray(feeds[name], dtype) for name, dtype in self._feeds.items()}
        (output,) = self._network.run(feeds, [self._output])
        return output, mask

    def _reduce(self, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
        output = output.astype(np.float32, copy=False)
        if self._settings.task == "embed":
            rows = pool(output, mask, self._settings.pooling) if output.ndim == 3 else output
            return normalized(rows) if self._settings.normalize else rows
        if self._settings.task == "rerank":
            return _sigmoid(output) if self._settings.sigmoid else output
        return _sigmoid(output) if self._settings.multi_label else _softmax(output)

    def _measure(self) -> float:
        """Returns what a run costs besides its tokens, in tokens; times a short and a long run."""
        long = min(_LONG, self._settings.max_tokens)
        short = min(_SHORT, long - 1)
        if short < 1:
            return 0.0
        first, second = (self._time(length) for length in (short, long))
        for_token = (second - first) / (long - short)
        # Noise of the machine may make the long run the faster one; then runs are as large as they may be.
        return min(max(first / for_token - short, 0.0), self._most) if for_token > 0 else self._most

    def _time(self, length: int) -> float:
        ids = [np.zeros(length, np.int64)]
        fastest = float("inf")
        for _ in range(3):
            began = perf_counter()
            self._run(ids, Encoded(ids, None, [0]), [0])
            fastest = min(fastest, perf_counter() - began)
        return fastest

    def _check_inputs(self, path: Path) -> None:
        known = (_IDS, _MASK, _TYPES, _POSITIONS)
        if _IDS not in self._feeds or any(name not in known for name in self._feeds):
            raise InvalidArgument(
                f"'{path}' has the inputs {', '.join(self._feeds)}; expected {_IDS} and some of"
                f" {', '.join(known[1:])}: export the encoder alone"
            )

    def _choose_output(self, path: Path) -> tuple[str, int]:
        """Returns the name of the output to use, and the size of a row."""
        specs = {spec.name: spec for spec in self._network.signature.outputs}
        first = next(iter(specs.values()))
        if self._settings.task == "embed":
            chosen = next((specs[name] for name in _POOLED if name in specs), first)
            if len(chosen.shape) in (2, 3) and chosen.datatype in (DataType.FP32, DataType.FP16):
                return chosen.name, chosen.shape[-1]
            expected = "an FP32 or FP16 output of shape [batch, tokens, size] or [batch, size]"
        else:
            chosen = specs.get("logits", first)
            count = 1 if self._settings.task == "rerank" else len(self._settings.labels)
            if len(chosen.shape) == 2 and chosen.shape[1] in (-1, count):
                return chosen.name, count
            expected = f"logits of shape [batch, {count}], one for each label in config.json"
        raise InvalidArgument(
            f"'{path}' has the output {chosen}, which does not fit the task '{self._settings.task}': expected"
            f" {expected}"
        )


def _signature(settings: TextSettings, wide: int) -> Signature:
    counts = (TensorSpec("tokens", DataType.INT32, (-1,)), TensorSpec("truncated", DataType.INT32, (-1,)))
    text = TensorSpec("text", DataType.BYTES, (-1,))
    if settings.task == "rerank":
        query = TensorSpec("query", DataType.BYTES, (-1,))
        return Signature((query, text), (TensorSpec("score", DataType.FP32, (-1,)), *counts))
    if settings.task == "classify":
        probabilities = TensorSpec("probabilities", DataType.FP32, (-1, wide), labels=settings.labels)
        return Signature((text,), (probabilities, *counts))
    ids = TensorSpec("token_ids", DataType.INT32, (-1, -1), optional=True)
    embedding = TensorSpec("embedding", DataType.FP32, (-1, wide))
    return Signature((replace(text, optional=True), ids), (embedding, *counts))


def pool(output: np.ndarray, mask: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Reduces [N, L, D] to [N, D], given the attention mask [N, L], as sentence-transformers does."""
    rows: np.ndarray
    if pooling == "cls":
        rows = output[:, 0]
        return rows
    if pooling == "lasttoken":
        rows = output[np.arange(len(output)), mask.sum(axis=1) - 1]
        return rows
    if pooling == "max":
        rows = np.where(mask[:, :, None] > 0, output, np.float32(-1e9)).max(axis=1)
        return rows
    weights = mask.astype(np.float32)
    if pooling == "weightedmean":
        weights *= np.arange(1, mask.shape[1] + 1, dtype=np.float32)
    rows = np.einsum("nl,nld->nd", weights, output)
    counts = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    rows /= np.sqrt(counts) if pooling == "mean_sqrt_len_tokens" else counts
    return rows


def normalized(rows: np.ndarray) -> np.ndarray:
    """Returns the rows with length 1; a row of zeros stays as it is."""
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    values: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits))
    return values


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
