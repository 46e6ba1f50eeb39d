"""Reads the settings in a folder of Hugging Face: what the network computes, and what to do with its output.

The layout is that of sentence-transformers (modules.json, 1_Pooling/config.json) or that of a model of
transformers (config.json alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from backline.backends.parameters import Parameters
from backline.backends.runtime import read_start
from backline.engine.document_limits import MAX_DOCUMENT
from backline_client.values.errors import InvalidArgument

Task: TypeAlias = Literal["embed", "rerank", "classify"]
Pooling: TypeAlias = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
TASKS: Final = ("embed", "rerank", "classify")
POOLINGS: Final = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
#: The parameters of this backend; the others are those of the ONNX backend.
PARAMETERS: Final = ("task", "pooling", "normalize", "max_tokens", "prompt", "onnx_file")
_TOKENIZER: Final = "tokenizer.json"
_NETWORKS: Final = ("onnx/model.onnx", "model.onnx")
#: A limit above this stands for "unlimited" in tokenizer_config.json.
_MOST_TOKENS: Final = 1 << 20
#: The keys in 1_Pooling/config.json, with the pooling that each stands for.
_POOLING_KEYS: Final[Mapping[str, Pooling]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class TextSettings(Struct, frozen=True):
    """How to run a text model. `max_tokens` is the maximum number of tokens of a text, or of a pair of a
    query and a text, with special tokens. `prompt` is put in front of every text. `labels` are the classes of
    a classification model, of which a text may have several if `multi_label` is set. `sigmoid` says whether
    scores are logits that become numbers from 0 to 1.
    """

    network: Path
    tokenizer: Path
    task: Task
    max_tokens: int
    pad_token: int = 0
    pooling: Pooling = "mean"
    normalize: bool = False
    prompt: str = ""
    lowercase: bool = False
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    sigmoid: bool = True


def read_settings(path: Path, parameters: Parameters) -> TextSettings:
    """Reads the folder of a model. `path` is the folder, or the folder `onnx` or a file in it.

    Raises InvalidArgument if a file is missing or malformed, or asks for what this backend lacks.
    """
    folder = _root(path)
    model = _read(folder / "config.json")
    modules = _modules(folder)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise InvalidArgument(
                f"'{folder / 'modules.json'}' has a module of type '{kind}', expected Transformer, Pooling or"
                " Normalize: export the whole model to ONNX, with an output 'sentence_embedding', and remove"
                " the module from the file"
            )
    labels = _labels(model)
    task: Task = parameters.choice("task", _task(model, labels, bool(modules)), TASKS)  # type: ignore[assignment]
    pooling = next(
        (
            str(module.get("path", ""))
            for module, kind in zip(modules, kinds, strict=True)
            if kind == "Pooling"
        ),
        "",
    )
    sentence = _read(folder / "sentence_bert_config.json")
    tokenizer = _read(folder / "tokenizer_config.json")
    prompts = _read(folder / "config_sentence_transformers.json")
    return TextSettings(
        _network(folder, path, parameters),
        folder / _TOKENIZER,
        task,
        parameters.number(
            "max_tokens", _max_tokens(sentence, tokenizer, model), _MOST_TOKENS, "a number of tokens"
        ),
        pad_token=_whole(model.get("pad_token_id"), 0),
        pooling=parameters.choice("pooling", _pooling(folder, pooling), POOLINGS),  # type: ignore[arg-type]
        normalize=parameters.flag("normalize", "Normalize" in kinds),
        prompt=parameters.text("prompt", _prompt(prompts)),
        lowercase=sentence.get("do_lower_case") is True,
        labels=labels,
        multi_label=model.get("problem_type") == "multi_label_classification",
        sigmoid=not _is_identity(model, prompts),
    )


def _root(path: Path) -> Path:
    """Returns the folder with the tokenizer, for a model found by any of its files."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        if (place / _TOKENIZER).is_file():
            return place
    raise InvalidArgument(
        f"'{folder}' holds no {_TOKENIZER}: copy the whole folder of the model, or save its tokenizer"
        " as a fast one"
    )


def _network(folder: Path, path: Path, parameters: Parameters) -> Path:
    if name := parameters.text("onnx_file"):
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InvalidArgument(f"parameter 'onnx_file' names '{name}', which is outside of '{folder}'")
        if not file.is_file():
            raise InvalidArgument(f"parameter 'onnx_file' names '{name}', which '{folder}' does not hold")
        return file
    if path.is_file():
        return path
    for name in _NETWORKS:
        if (folder / name).is_file():
            return folder / name
    raise InvalidArgument(
        f"'{folder}' holds no {' or '.join(_NETWORKS)}: export the model to ONNX, for example with"
        " 'optimum-cli export onnx', or name the file with the parameter 'onnx_file'"
    )


def _modules(folder: Path) -> list[Mapping[str, Any]]:
    """Returns the modules of sentence-transformers, in order; empty for a model of transformers."""
    content = _decoded(folder / "modules.json", list[dict[str, Any]])
    return [] if content is None else list(content)


def _read(path: Path) -> Mapping[str, Any]:
    """Returns the JSON object in a file; empty if there is no such file."""
    content: dict[str, Any] | None = _decoded(path, dict[str, Any])
    return {} if content is None else content


def _decoded(path: Path, kind: Any) -> Any:
    if not path.is_file():
        return None
    text = read_start(path, MAX_DOCUMENT + 1)
    try:
        if len(text) > MAX_DOCUMENT:
            raise ValueError(f"it has more than {MAX_DOCUMENT} bytes")
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error}") from None


def _task(model: Mapping[str, Any], labels: tuple[str, ...], sentence: bool) -> Task:
    architectures = model.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if sentence or not any(str(name).endswith("ForSequenceClassification") for name in names):
        return "embed"
    return "rerank" if len(labels) == 1 else "classify"


def _labels(model: Mapping[str, Any]) -> tuple[str, ...]:
    given = model.get("id2label")
    if not isinstance(given, Mapping):
        return ("LABEL_0", "LABEL_1")[: _whole(model.get("num_labels"), 2)]  # transformers' default has two
    return tuple(str(given[key]) for key in sorted(given, key=lambda key: _whole(key, 0)))


def _pooling(folder: Path, name: str) -> Pooling:
    """Returns the pooling in the folder `name`; the mean, as in sentence-transformers, if there is none."""
    path = folder / name / "config.json"
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        return "mean"
    settings = _read(path)
    chosen = [pooling for key, pooling in _POOLING_KEYS.items() if settings.get(key) is True]
    if (mode := settings.get("pooling_mode")) in POOLINGS:
        chosen = [mode]
    if len(chosen) > 1:
        raise InvalidArgument(f"'{path}' asks for several poolings together, {chosen}: choose one of them")
    return chosen[0] if chosen else "mean"


def _prompt(settings: Mapping[str, Any]) -> str:
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    return str(prompts.get(name, "")) if isinstance(prompts, Mapping) and name is not None else ""


def _is_identity(model: Mapping[str, Any], prompts: Mapping[str, Any]) -> bool:
    """Returns whether the model says that its scores are the network's output itself, as older and newer
    versions of sentence-transformers say it.
    """
    nested = model.get("sentence_transformers")
    given = (
        prompts.get("activation_fn"),
        model.get("sbert_ce_default_activation_function"),
        nested.get("activation_fn") if isinstance(nested, Mapping) else None,
    )
    return any(str(name).endswith("Identity") for name in given)


def _max_tokens(sentence: Mapping[str, Any], tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> int:
    """Returns the smallest of the limits that the files state."""
    positions = _whole(model.get("max_position_embeddings"), 0)
    if model.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= _whole(model.get("pad_token_id"), 1) + 1  # the first positions are never used
    limits = (
        _whole(sentence.get("max_seq_length"), 0),
        _whole(tokenizer.get("model_max_length"), 0),
        positions,
    )
    return min((limit for limit in limits if 0 < limit <= _MOST_TOKENS), default=512)


def _whole(value: object, otherwise: int) -> int:
    if isinstance(value, bool):
        return otherwise
    try:
        return int(value)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError, OverflowError):
        return otherwise
