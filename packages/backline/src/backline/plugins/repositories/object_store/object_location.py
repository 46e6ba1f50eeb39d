"""Reads the location and the credentials of an object store from the URL, the environment, the AWS files and
Triton's credentials file.
"""

from __future__ import annotations

import configparser
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from backline_client.values.errors import InvalidArgument

CREDENTIALS_FILE: Final = "TRITON_CLOUD_CREDENTIAL_PATH"

_ENDPOINT: Final = re.compile(r"https?://[^/:@\s]+(:\d{1,5})?")
#: The advice about credentials in error messages, for each kind of store.
CREDENTIALS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) or AWS_PROFILE, "
    "or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, run 'gcloud auth application-default login', "
    "or set GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY "
    "(or AZURE_STORAGE_SAS_KEY), or AZURE_SKIP_SIGNATURE=true for a public container",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """A prefix in a bucket or container of a store, with the options for obstore. `kind` is "s3", "gs" or
    "az".
    """

    kind: str
    bucket: str
    prefix: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_location(location: str, environment: Mapping[str, str] = os.environ) -> ObjectLocation:
    """Parses the URL of a bucket or container. Raises InvalidArgument, which names the expected forms, if the
    URL is not valid.

    The forms are s3://bucket/prefix, s3://[https://]host:port/bucket/prefix, gs://bucket/prefix,
    az://container/prefix and as://account.blob.core.windows.net/container/prefix.
    """
    scheme, _, rest = location.partition("://")
    scheme = scheme.lower()
    if "?" in rest or "#" in rest:
        raise InvalidArgument(
            f"'{location}' has '?' or '#', which names of buckets and objects cannot contain; remove it"
        )
    if scheme == "s3":
        return _s3(location, rest, environment)
    if scheme == "gs":
        return _gcs(location, rest, environment)
    return _azure(location, scheme, rest, environment)


def _split(location: str, rest: str, form: str) -> tuple[str, str]:
    bucket, _, prefix = rest.strip("/").partition("/")
    if not bucket:
        raise InvalidArgument(f"'{location}' names no bucket; expected {form}")
    parts = prefix.split("/") if prefix else []
    if any(part in {"", ".", ".."} for part in parts) or "\0" in prefix:
        raise InvalidArgument(f"'{location}' has an empty part, '.' or '..' in its path; expected {form}")
    return bucket, prefix


def _s3(location: str, rest: str, environment: Mapping[str, str]) -> ObjectLocation:
    options: dict[str, Any] = {}
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or environment.get("AWS_ENDPOINT")
    )
    scheme = ""
    for candidate in ("https", "http"):
        if rest.startswith(f"{candidate}://"):
            scheme, rest = candidate, rest.removeprefix(f"{candidate}://")
    host = rest.partition("/")[0]
    if scheme or ":" in host:
        # This is Triton's form for a store other than Amazon's. If the host is written without a scheme, HTTP
        # is used.
        endpoint, rest = f"{scheme or 'http'}://{host}", rest.partition("/")[2]
        if not _ENDPOINT.fullmatch(endpoint):
            raise InvalidArgument(
                f"'{host}' in '{location}' is not a valid endpoint; expected s3://host:port/bucket/prefix"
            )
    bucket, prefix = _split(location, rest, "s3://bucket/prefix or s3://https://host:port/bucket/prefix")
    if endpoint:
        options["endpoint"] = endpoint.rstrip("/")
    if given := _given("s3", f"s3://{bucket}/{prefix}", environment):
        names = {
            "key_id": "access_key_id",
            "secret_key": "secret_access_key",
            "session_token": "session_token",
            "region": "region",
        }
        options |= {names[key]: value for key, value in given.items() if key in names and value}
        options |= _aws_profile(given["profile"], environment) if given.get("profile") else {}
    elif "AWS_ACCESS_KEY_ID" not in environment:
        options |= _aws_profile(environment.get("AWS_PROFILE", ""), environment)
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    options.setdefault("region", "us-east-1")
    return ObjectLocation("s3", bucket, prefix, options)


def _aws_profile(profile: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns the access keys and the region of a profile in the AWS credentials and config files.

    The result is empty if `profile` is empty and the files have no default profile. Raises InvalidArgument if
    the files have neither access keys nor a region for `profile`, or are malformed.
    """
    name = profile or "default"
    home = Path(environment.get("HOME", "~")).expanduser() / ".aws"
    paths = (
        (Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), name),
        (
            Path(environment.get("AWS_CONFIG_FILE") or home / "config"),
            name if name == "default" else f"profile {name}",
        ),
    )
    fields = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
    }
    options: dict[str, Any] = {}
    for path, section in paths:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path)
        except (configparser.Error, UnicodeDecodeError) as error:
            raise InvalidArgument(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None
        if parser.has_section(section):
            options |= {fields[key]: value for key, value in parser[section].items() if key in fields}
    if profile and not options:
        raise InvalidArgument(
            f"neither '{paths[0][0]}' nor '{paths[1][0]}' has access keys or a region for the profile"
            f" '{profile}'; add them to one of these files, or correct the profile's name in AWS_PROFILE or"
            f" in the file that {CREDENTIALS_FILE} names"
        )
    return options


def _gcs(location: str, rest: str, environment: Mapping[str, str]) -> ObjectLocation:
    bucket, prefix = _split(location, rest, "gs://bucket/prefix")
    options: dict[str, Any] = {}
    if emulator := environment.get("STORAGE_EMULATOR_HOST"):
        options = {
            "base_url": (emulator if "://" in emulator else f"http://{emulator}").rstrip("/"),
            "skip_signature": True,
        }
    elif given := _given("gs", f"gs://{bucket}/{prefix}", environment):
        options["application_credentials"] = given.get("path", "")
    return ObjectLocation("gs", bucket, prefix, options)


def _azure(location: str, scheme: str, rest: str, environment: Mapping[str, str]) -> ObjectLocation:
    options: dict[str, Any] = {}
    account = ""
    if scheme == "as":
        host, _, rest = rest.partition("/")
        account = host.partition(".")[0]
        if not account or account == host:
            raise InvalidArgument(
                f"'{location}' names no account; expected as://ACCOUNT.blob.core.windows.net/container/prefix"
            )
        container, prefix = _split(location, rest, "as://ACCOUNT.blob.core.windows.net/container/prefix")
        options = {"account_name": account, "endpoint": f"https://{host}"}
        place = f"as://{host}/{container}/{prefix}"
    else:
        container, prefix = _split(location, rest, "az://container/prefix")
        place = f"as://{container}/{prefix}"
    text = environment.get("AZURE_STORAGE_CONNECTION_STRING", "")
    connection = _connection_string(text) if text else {}
    if connection and account in {"", connection["account_name"]}:  # the string is for this account
        options |= connection
    elif given := _given("as", place, environment):
        options["account_name"] = given.get("account_str", options.get("account_name", ""))
        options |= (
            {"account_key": given["account_key"]} if given.get("account_key") else {"skip_signature": True}
        )
    elif asking := environment.get("AZURE_STORAGE_ACCOUNT"):  # the name that Triton and the Azure CLI use
        options.setdefault("account_name", asking)
    if key := environment.get("AZURE_STORAGE_KEY"):
        options.setdefault("account_key", key)
    if "account_name" not in options and "AZURE_STORAGE_ACCOUNT_NAME" not in environment:
        raise InvalidArgument(
            f"'{location}' does not say which account the container belongs to: {CREDENTIALS['az']}, "
            "or write as://ACCOUNT.blob.core.windows.net/container/prefix"
        )
    return ObjectLocation("az", container, prefix, options)


def _connection_string(text: str) -> dict[str, Any]:
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    account = parts.get("AccountName", "")
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {"use_emulator": True, "account_name": "devstoreaccount1"}
    endpoint = parts.get("BlobEndpoint")
    if not endpoint:
        if not account:
            raise InvalidArgument(
                "AZURE_STORAGE_CONNECTION_STRING has neither AccountName nor BlobEndpoint; copy it from the"
                " Azure portal again"
            )
        suffix = parts.get("EndpointSuffix", "core.windows.net")
        endpoint = f"{parts.get('DefaultEndpointsProtocol', 'https')}://{account}.blob.{suffix}"
    options: dict[str, Any] = {
        "endpoint": endpoint.rstrip("/"),
        "account_name": account or (urlsplit(endpoint).hostname or "").split(".")[0],
    }
    if "AccountKey" in parts:
        options["account_key"] = parts["AccountKey"]
    elif "SharedAccessSignature" in parts:
        options["sas_key"] = parts["SharedAccessSignature"].removeprefix("?")
    else:
        options["skip_signature"] = True
    return options


def _given(kind: str, place: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the entry for `place` in Triton's credentials file: the one with the longest prefix of `place`.
    Empty if there is no such entry or no such file.

    Raises InvalidArgument if the file cannot be read or is malformed.
    """
    name = environment.get(CREDENTIALS_FILE)
    if not name:
        return {}
    try:
        entries = json.loads(Path(name).read_text("utf-8")).get(kind, {})
        matching = [prefix for prefix in entries if place.startswith(prefix)]
        found = entries[max(matching, key=len)] if matching else {}
        found = {"path": found} if isinstance(found, str) else dict(found)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidArgument(
            f"{CREDENTIALS_FILE}: '{name}' cannot be used: {error}; expected JSON such as "
            '{"s3": {"s3://bucket": {"key_id": "...", "secret_key": "...", "region": "..."}}}'
        ) from None
    return {key: value for key, value in found.items() if isinstance(value, str)}
