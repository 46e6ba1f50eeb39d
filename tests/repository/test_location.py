"""Which kind of repository is opened for a location."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.engine.errors import InvalidArgument
from backline.repository.local import LocalRepository
from backline.repository.location import open_repository
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


def test_a_name_for_a_remote_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"a name \('m'\) can be given only to a model at a path"):
        open_repository("s3://bucket/models", formats=[ONNX], cache=tmp_path, name="m")
