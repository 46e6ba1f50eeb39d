"""Text models in Hugging Face's layout give what their network and their settings say, batched or alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.loading import lane_of, load
from backline.plugins.runtimes.text.groups import divide
from backline_client.values.errors import InvalidArgument

pytest.importorskip("tokenizers")
onnxruntime = pytest.importorskip("onnxruntime")
from support import text_models  # noqa: E402
from support.text_models import SPECIAL, WORDS, write_json  # noqa: E402

TEXTS = ("the cat sat on a mat", "dog", "a red car ran under the rug on the mat fast", "green dog")
PAIRS = (("the cat", "a cat sat"), ("a car", "the dog ran under a rug"))
LENGTH = 16


def ids_of(*texts: str) -> tuple[list[int], list[int]]:
    """The token ids of BERT for a text or a pair, and the type of each."""
    known = (*SPECIAL, *WORDS)
    ids, types = [known.index("[CLS]")], [0]
    for kind, text in enumerate(texts):
        part = [*(known.index(word) for word in text.split()), known.index("[SEP]")]
        ids += part
        types += [kind] * len(part)
    return ids, types


def network(folder: Path, ids: list[int], types: list[int]) -> np.ndarray:
    """The output of the network for one text alone, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    feeds = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
    return session.run(None, {name: np.array([one], np.int64) for name, one in feeds.items()})[0][0]


def strings(*texts: str) -> np.ndarray:
    return np.array([text.encode() for text in texts], np.object_)


POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls": lambda states: states[0],
    "mean": lambda states: states.mean(axis=0),
    "max": lambda states: states.max(axis=0),
    "lasttoken": lambda states: states[-1],
    "mean_sqrt_len_tokens": lambda states: states.sum(axis=0) / np.sqrt(len(states)),
    "weightedmean": lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_of_different_lengths_get_the_embeddings_that_they_have_alone(
    pooling: str, tmp_path: Path
) -> None:
    text_models.embedding_model(tmp_path, pooling=pooling, normalize=False, length=LENGTH)
    if pooling in ("mean_sqrt_len_tokens", "weightedmean"):
        write_json(
            tmp_path / "1_Pooling" / "config.json",
            {f"pooling_mode_{pooling.removesuffix('_tokens')}_tokens": True},
        )

    found, tokens = load(tmp_path).run({"text": strings(*TEXTS)}, ["embedding", "tokens"])

    expected = [POOLINGS[pooling](network(tmp_path, *ids_of(text))) for text in TEXTS]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert tokens.tolist() == [len(ids_of(text)[0]) for text in TEXTS]


def test_embeddings_are_normalised_if_the_modules_say_so(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path)

    (found,) = load(tmp_path).run({"text": strings(*TEXTS)}, ["embedding"])

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_a_text_that_is_too_long_is_cut_and_counted(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path, length=LENGTH)
    cut, whole = "the cat " * 20, "the cat " * 7  # 14 tokens and 2 special ones fit

    model = load(tmp_path)
    found, tokens, truncated = model.run({"text": strings(cut, whole)}, ["embedding", "tokens", "truncated"])

    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert tokens.tolist() == [LENGTH, LENGTH]
    assert truncated.tolist() == [26, 0]


def test_token_ids_give_the_embedding_of_their_text(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path)
    rows = [ids_of(text)[0] for text in TEXTS]
    ids = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row

    model = load(tmp_path)
    (of_texts,) = model.run({"text": strings(*TEXTS)}, ["embedding"])
    (of_ids,) = model.run({"token_ids": ids}, ["embedding"])

    np.testing.assert_allclose(of_ids, of_texts, atol=1e-6)


def test_unknown_token_ids_spoil_only_their_own_row(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path)
    ids = np.array([[2, 5, 3], [2, 999, 3], [-1, -1, -1], [2, -7, 3]], np.int32)

    found, tokens = load(tmp_path).run({"token_ids": ids}, ["embedding", "tokens"])

    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, True]
    assert tokens.tolist() == [3, -1, -1, -1]


def test_a_model_with_one_label_scores_pairs(tmp_path: Path) -> None:
    text_models.classification_model(tmp_path, ["LABEL_0"])
    queries, texts = (strings(*column) for column in zip(*PAIRS, strict=True))

    found, tokens = load(tmp_path).run({"query": queries, "text": texts}, ["score", "tokens"])

    logits = np.concatenate([network(tmp_path, *ids_of(*pair)) for pair in PAIRS])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert tokens.tolist() == [len(ids_of(*pair)[0]) for pair in PAIRS]


def test_scores_stay_logits_if_the_model_says_so(tmp_path: Path) -> None:
    text_models.classification_model(tmp_path, ["LABEL_0"])
    write_json(
        tmp_path / "config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.linear.Identity"}
    )
    queries, texts = (strings(*column) for column in zip(*PAIRS, strict=True))

    (found,) = load(tmp_path).run({"query": queries, "text": texts}, ["score"])

    logits = np.concatenate([network(tmp_path, *ids_of(*pair)) for pair in PAIRS])
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_a_model_with_several_labels_classifies(tmp_path: Path) -> None:
    text_models.classification_model(tmp_path, ["bad", "good", "so so"])

    model = load(tmp_path)
    (found,) = model.run({"text": strings(*TEXTS)}, ["probabilities"])

    powers = np.exp(np.stack([network(tmp_path, *ids_of(text)) for text in TEXTS]))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert model.signature.outputs[0].labels == ("bad", "good", "so so")


def test_a_prompt_and_lower_case_apply_to_every_text(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path)
    (plain,) = load(tmp_path).run({"text": strings("the cat sat")}, ["embedding"])
    write_json(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": {"query": "THE "}, "default_prompt_name": "query"},
    )

    (found,) = load(tmp_path).run({"text": strings("cat sat")}, ["embedding"])

    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_text_model_never_runs_on_the_event_loop(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path)

    lane, warning = lane_of(tmp_path)

    assert lane == "thread"
    assert "any number of tokens" in warning


def test_a_flat_folder_needs_the_name_of_the_backend(tmp_path: Path) -> None:
    text_models.write_tokenizer(tmp_path)
    path = text_models.write_bert(tmp_path / "model.onnx")

    assert "input_ids" in [spec.name for spec in load(path).signature.inputs]
    assert [spec.name for spec in load(path, backend="text").signature.inputs] == ["text", "token_ids"]


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_network(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_tokenizer, "holds no tokenizer.json"),
        (without_network, "export the model to ONNX"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json' cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded by tokenizers"),
        (
            lambda folder: write_json(
                folder / "modules.json", [{"type": "sentence_transformers.models.Dense"}]
            ),
            "module of type 'Dense'",
        ),
        (
            lambda folder: write_json(
                folder / "1_Pooling" / "config.json",
                {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            ),
            "several poolings",
        ),
        (partial(text_models.add_input, name="pixel_values"), "export the encoder alone"),
    ],
)
def test_a_folder_that_cannot_be_served_says_why(
    damage: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    text_models.embedding_model(tmp_path)
    damage(tmp_path)

    with pytest.raises(InvalidArgument, match=reason):
        load(tmp_path)


def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    text_models.embedding_model(tmp_path / "m")
    text_models.write_bert(tmp_path / "other.onnx")

    with pytest.raises(InvalidArgument, match="outside"):
        load(tmp_path / "m", parameters={"onnx_file": "../other.onnx"})


@given(st.lists(st.integers(1, 300), max_size=200), st.floats(0, 100))
def test_each_text_is_in_one_run_and_runs_are_limited(lengths: list[int], overhead: float) -> None:
    runs = divide(lengths, overhead, 512)

    assert sorted(place for run in runs for place in run) == list(range(len(lengths)))
    assert all(len(run) == 1 or len(run) * max(lengths[place] for place in run) <= 512 for run in runs)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 30))
def test_no_other_division_takes_less_time(lengths: list[int], overhead: int) -> None:
    def cost(runs: list[list[int]]) -> int:
        return sum(overhead + len(run) * max(run) for run in runs)

    ordered = sorted(lengths, reverse=True)
    cuts = (cut for number in range(len(lengths)) for cut in combinations(range(1, len(lengths)), number))
    divisions = (
        [ordered[start:end] for start, end in zip((0, *cut), (*cut, len(ordered)), strict=True)]
        for cut in cuts
    )

    found = divide(lengths, overhead, 10_000)

    assert cost([[lengths[place] for place in run] for run in found]) == min(map(cost, divisions))
