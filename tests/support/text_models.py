"""Text models in Hugging Face's layout: a small BERT with random weights, and a tokenizer of a few words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("a", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "rug", "car", "red", "green", "fast")


class _Graph:
    """Collects the nodes and weights of a network; each method returns the name of its result."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, scale: float = 0.0) -> str:
        scale = scale or 1 / np.sqrt(shape[0])
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, values: object) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, x: str, wide: int, out: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(wide, out)), self.weight(out, scale=0.02))

    def norm(self, x: str, wide: int) -> str:
        ones, zeros = (self.constant(np.full(wide, value, np.float32)) for value in (1, 0))
        return self.node("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-12)


def write_bert(
    path: Path,
    *,
    vocabulary: int = len(SPECIAL) + len(WORDS),
    layers: int = 2,
    wide: int = 32,
    heads: int = 4,
    positions: int = 512,
    labels: int = 0,
    seed: int = 0,
) -> Path:
    """Writes BERT in ONNX: input_ids, attention_mask and token_type_ids INT64 [N, L] to last_hidden_state
    [N, L, wide], or to logits [N, labels] if there are labels.
    """
    graph = _Graph(seed)
    ids, mask, types = "input_ids", "attention_mask", "token_type_ids"
    length = graph.node("Slice", graph.node("Shape", ids), *map(graph.constant, ([1], [2], [0])))
    places = graph.node("Slice", graph.weight(positions, wide, scale=0.5), graph.constant([0]), length)
    words = graph.node("Gather", graph.weight(vocabulary, wide, scale=1.0), ids)
    kinds = graph.node("Gather", graph.weight(2, wide, scale=0.5), types)
    x = graph.norm(graph.node("Add", graph.node("Add", words, places), kinds), wide)
    hidden = graph.node("Sub", graph.constant(np.float32(1)), graph.node("Cast", mask, to=TensorProto.FLOAT))
    bias = graph.node("Mul", hidden, graph.constant(np.float32(-1e4)))
    bias = graph.node("Unsqueeze", bias, graph.constant([1, 2]))
    split, merged = graph.constant([0, 0, heads, wide // heads]), graph.constant([0, 0, wide])
    root = graph.constant(np.float32(1 / np.sqrt(wide // heads)))
    for _ in range(layers):
        query, key, value = (
            graph.node(
                "Transpose",
                graph.node("Reshape", graph.linear(x, wide, wide), split),
                perm=(0, 2, place, 4 - place),
            )
            for place in (1, 3, 1)
        )
        scores = graph.node("Add", graph.node("Mul", graph.node("MatMul", query, key), root), bias)
        mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
        mixed = graph.node("Reshape", graph.node("Transpose", mixed, perm=(0, 2, 1, 3)), merged)
        x = graph.norm(graph.node("Add", x, graph.linear(mixed, wide, wide)), wide)
        grown = graph.node("Gelu", graph.linear(x, wide, 4 * wide))
        x = graph.norm(graph.node("Add", x, graph.linear(grown, 4 * wide, wide)), wide)
    if labels:
        first = graph.node("Gather", x, graph.constant(0), axis=1)
        graph.node("Identity", graph.linear(first, wide, labels), output="logits")
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", labels])
    else:
        graph.node("Identity", x, output="last_hidden_state")
        output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["N", "L", wide])
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in (ids, mask, types)
    ]
    made = helper.make_graph(graph.nodes, "bert", inputs, [output], graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS, length: int = 64) -> Path:
    """Writes tokenizer.json, which splits texts at spaces, and the limit of `length` tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    known = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"model_max_length": length, "pad_token": "[PAD]"})
    return folder


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def embedding_model(
    folder: Path, *, pooling: str = "mean", normalize: bool = True, length: int = 64, **bert: int
) -> Path:
    """Writes a model as sentence-transformers does, with its network in onnx/model.onnx."""
    write_tokenizer(folder, length=length)
    write_bert(folder / "onnx" / "model.onnx", **bert)
    write_json(folder / "config.json", {"architectures": ["BertModel"], "pad_token_id": 0})
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalize]
    places = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, place) in enumerate(zip(kinds, places, strict=False))
    ]
    write_json(folder / "modules.json", modules)
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    write_json(
        folder / "1_Pooling" / "config.json",
        {f"pooling_mode_{name}": kind == pooling for kind, name in names.items()},
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    return folder


def classification_model(folder: Path, labels: Sequence[str], *, length: int = 64, **bert: int) -> Path:
    """Writes a sequence classification model as Hugging Face does; with one label it reranks."""
    write_tokenizer(folder, length=length)
    write_bert(folder / "onnx" / "model.onnx", labels=len(labels), **bert)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "pad_token_id": 0,
    }
    write_json(folder / "config.json", config)
    return folder


def add_input(folder: Path, name: str) -> None:
    """Adds an input to the network, which ignores it."""
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]))
    onnx.save(model, path)
