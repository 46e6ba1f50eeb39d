"""Which kind of repository is opened for a location."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.repository.local import LocalRepository
from backline.repository.location import open_repository
from backline_client.values.errors import InvalidArgument
from support.repositories import ONNX


@pytest.mark.parametrize(
    "location", ["models", "/srv/models", "./a b", "C:/models", "odd:name", "a:b/c", "hfiles", "s3"]
)
def test_a_path_is_local(location: str, tmp_path: Path) -> None:
    repository = open_repository(location, formats=[ONNX], cache=tmp_path)

    assert isinstance(repository, LocalRepository)
    assert repository.location == str(Path(location).absolute())


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("s4://bucket/models", "unknown scheme 's4://'; did you mean 's3://'?"),
        ("gcs://bucket/models", "unknown scheme 'gcs://'; did you mean 'gs://'?"),
        ("abfss://container@account/models", "unknown scheme 'abfss://'; did you mean 'az://'?"),
        ("htps://host/models.zip", "unknown scheme 'htps://'; did you mean 'https://'?"),
        (
            "magic://x",
            (
                "unknown scheme 'magic://'; expected a path or one of s3://,"
                " gs://, az://, as://, http://, https://, hf://"
            ),
        ),
        ("file:///srv/models", "name the folder without 'file://'"),
        ("", "'' is not a model repository; expected a folder, a model file or a URL"),
        ("  ", "is not a model repository"),
        ("a\0b", "'a\\x00b' is not a model repository"),
    ],
)
def test_a_location_that_is_neither_path_nor_known_url_is_refused(
    location: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        open_repository(location, formats=[ONNX], cache=tmp_path)

    assert reason in raised.value.message


@pytest.mark.parametrize("url", ["https://host/models.zip", "https://host/model.onnx?a=b", "hf:owner/repo"])
def test_a_url_can_be_given_with_a_name(url: str, tmp_path: Path) -> None:
    named = open_repository(f"my-model={url}", formats=[ONNX], cache=tmp_path)
    assert (named.name, named.location) == ("my-model", url.partition("?")[0])
    assert open_repository(url, formats=[ONNX], cache=tmp_path, name="other").name == "other"
    with pytest.raises(InvalidArgument, match="was given two names, 'my-model' and 'other'; leave one out"):
        open_repository(f"my-model={url}", formats=[ONNX], cache=tmp_path, name="other")


def test_a_path_may_contain_an_equals_sign(tmp_path: Path) -> None:
    assert open_repository("a=b", formats=[ONNX], cache=tmp_path).location == str(Path("a=b").absolute())
