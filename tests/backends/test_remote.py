"""The backend for models that other servers serve: its parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.backends.backend import LoadOptions
from backline.engine.config.model_config import ModelConfig
from backline.plugins.fleet.backend import Remote
from backline_client.values.errors import InvalidArgument

TRUSTED = LoadOptions(may_run_code=True)


def _config(**parameters: str) -> ModelConfig:
    return ModelConfig("notes", backend="remote", parameters=parameters)


def test_the_model_has_the_same_name_there_unless_it_is_given_another() -> None:
    here = Remote().load(Path("notes/1"), _config(urls="http://a:8000"), TRUSTED)
    other = Remote().load(Path("notes/1"), _config(urls="http://a:8000", model="pitch", version="3"), TRUSTED)

    assert (here.model, here.version, here.max_in_flight) == ("notes", "", 64)
    assert (other.model, other.version) == ("pitch", "3")


def test_the_key_is_read_from_its_file_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")

    model = Remote().load(
        Path("notes/1"), _config(urls="http://a:8000", api_key_file=str(tmp_path / "key")), TRUSTED
    )

    assert model.api_key == "secret"
    assert "secret" not in repr(model)


def test_files_from_elsewhere_may_not_name_servers() -> None:
    with pytest.raises(InvalidArgument, match="--trust-remote-code"):
        Remote().load(Path("notes/1"), _config(urls="http://169.254.169.254"), LoadOptions())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "needs the parameter 'urls'"),
        ({"urls": "http://a", "max_in_flight": "0"}, "expected a number of requests from 1 to 1024"),
        ({"urls": "http://a", "api_key_file": "/no/such/file"}, "cannot be read"),
    ],
    ids=["urls", "number", "key"],
)
def test_wrong_parameters_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Remote().load(Path("notes/1"), _config(**parameters), TRUSTED)


def test_an_unknown_parameter_is_warned_of() -> None:
    model = Remote().load(Path("notes/1"), _config(urls="http://a", url="http://b"), TRUSTED)

    assert "did you mean 'urls'?" in model.warnings[0]
