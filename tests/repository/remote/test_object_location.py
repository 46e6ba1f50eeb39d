"""How the location of an object store and the environment become options of the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.plugins.repositories.object_store.object_location import parse_location
from backline_client.values.errors import InvalidArgument

AZURE = "AccountName=acme;AccountKey=a2V5;EndpointSuffix=core.windows.net;DefaultEndpointsProtocol=https"


@pytest.mark.parametrize(
    ("location", "kind", "bucket", "prefix"),
    [
        ("s3://models", "s3", "models", ""),
        ("s3://models/a/b/", "s3", "models", "a/b"),
        ("s3://https://minio.example.org:9000/models/a", "s3", "models", "a"),
        ("s3://minio:9000/models/a", "s3", "models", "a"),
        ("gs://models/a", "gs", "models", "a"),
        ("az://models/a", "az", "models", "a"),
        ("as://acme.blob.core.windows.net/models/a", "az", "models", "a"),
    ],
)
def test_bucket_and_prefix_are_read(location: str, kind: str, bucket: str, prefix: str) -> None:
    place = parse_location(location, {"HOME": "/nowhere", "AZURE_STORAGE_CONNECTION_STRING": AZURE})
    assert (place.kind, place.bucket, place.prefix) == (kind, bucket, prefix)


@pytest.mark.parametrize(
    ("location", "endpoint"),
    [
        ("s3://https://minio.example.org:9000/models", "https://minio.example.org:9000"),
        ("s3://minio:9000/models", "http://minio:9000"),
        ("s3://models", "http://from-the-environment:1"),
    ],
)
def test_the_endpoint_of_a_location_takes_precedence_over_the_environment(
    location: str, endpoint: str
) -> None:
    place = parse_location(
        location, {"HOME": "/nowhere", "AWS_ENDPOINT_URL": "http://from-the-environment:1"}
    )
    assert place.options["endpoint"] == endpoint


@pytest.fixture
def aws_home(tmp_path: Path) -> str:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n[lab]\naws_access_key_id ="
        " l\naws_secret_access_key = l%s\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = eu-central-1\n[profile lab]\nregion = us-west-2\n"
    )
    return str(tmp_path)


def test_the_default_profile_of_awss_files_is_read(aws_home: str) -> None:
    options = parse_location("s3://models", {"HOME": aws_home}).options
    assert (options["access_key_id"], options["secret_access_key"], options["region"]) == (
        "d",
        "ds",
        "eu-central-1",
    )


def test_a_named_profile_is_read_but_the_environment_sets_the_region(aws_home: str) -> None:
    options = parse_location(
        "s3://models", {"HOME": aws_home, "AWS_PROFILE": "lab", "AWS_REGION": "eu-west-1"}
    ).options
    assert (options["access_key_id"], options["secret_access_key"], options["region"]) == (
        "l",
        "l%s",
        "eu-west-1",
    )


def test_keys_in_the_environment_take_precedence_over_awss_files(aws_home: str) -> None:
    options = parse_location(
        "s3://models", {"HOME": aws_home, "AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "es"}
    ).options
    assert "access_key_id" not in options


def test_a_profile_that_does_not_exist_is_named(aws_home: str) -> None:
    with pytest.raises(
        InvalidArgument, match="has access keys or a region for the profile 'prod'; add them to one of"
    ):
        parse_location("s3://models", {"HOME": aws_home, "AWS_PROFILE": "prod"})


def test_the_longest_prefix_in_tritons_credentials_counts(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(
        '{"s3": {"": {"key_id": "any"}, "s3://models/a": {"key_id": "a"}}, "gs": {"": "/keys/any.json"},'
        ' "as": {"": {"account_str": "acme", "account_key": "a2V5"}}}'
    )
    environment = {"HOME": "/nowhere", "TRITON_CLOUD_CREDENTIAL_PATH": str(file)}
    assert parse_location("s3://models/a/b", environment).options["access_key_id"] == "a"
    assert parse_location("s3://models/b", environment).options["access_key_id"] == "any"
    assert parse_location("gs://models", environment).options["application_credentials"] == "/keys/any.json"
    assert (
        parse_location("as://acme.blob.core.windows.net/models", environment).options["account_key"] == "a2V5"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"s3": {"": 1}}', "{"])
def test_an_unusable_credentials_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(text)
    with pytest.raises(
        InvalidArgument,
        match=r"TRITON_CLOUD_CREDENTIAL_PATH: '.*credentials.json' cannot be used: .*; expected JSON such as",
    ):
        parse_location("s3://models", {"HOME": "/nowhere", "TRITON_CLOUD_CREDENTIAL_PATH": str(file)})


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            AZURE,
            {"endpoint": "https://acme.blob.core.windows.net", "account_name": "acme", "account_key": "a2V5"},
        ),
        (
            "BlobEndpoint=https://acme.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=a%2Bb",
            {
                "endpoint": "https://acme.blob.core.windows.net",
                "account_name": "acme",
                "sas_key": "sv=1&sig=a%2Bb",
            },
        ),
        ("UseDevelopmentStorage=true", {"use_emulator": True, "account_name": "devstoreaccount1"}),
    ],
)
def test_azures_connection_strings_are_read(text: str, options: dict[str, object]) -> None:
    assert parse_location("az://models", {"AZURE_STORAGE_CONNECTION_STRING": text}).options == options


def test_a_connection_string_for_another_account_is_ignored() -> None:
    options = parse_location(
        "as://other.blob.core.windows.net/models", {"AZURE_STORAGE_CONNECTION_STRING": AZURE}
    ).options
    assert options == {"account_name": "other", "endpoint": "https://other.blob.core.windows.net"}
