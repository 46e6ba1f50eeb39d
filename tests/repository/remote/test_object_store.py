"""Models in real object stores, each started by the tests."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from support import models
from support.object_stores import Store
from support.tools import Certificate, make_certificate, run
from support.web import Page, WebServer

from .conftest import Open, fetch, scan


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """add1 in two versions with a configuration, and ident."""
    folder = tmp_path / "models"
    models.add1(folder)
    models.add1(folder, version="2", constant=2.0)
    models.ident(folder, dims=(4,))
    (folder / "add1" / "config.pbtxt").write_text('name: "add1" max_batch_size: 8 version_policy { all {} }')
    return folder


def test_models_of_a_store_are_found_and_fetched(store: Store, two_models: Path, opened: Open) -> None:
    store.put_folder(two_models, "prod/models")
    repository = opened(store.location("prod/models"))
    found = scan(repository)
    assert sorted(found) == ["add1", "ident"]
    assert [version.version for version in found["add1"].versions] == ["1", "2"]
    assert found["add1"].config.max_batch_size == 8
    fetched = fetch(repository, found["add1"], "2")
    assert fetched.path.read_bytes() == (two_models / "add1" / "2" / "model.onnx").read_bytes()
    assert (fetched.model_folder / "config.pbtxt").is_file() or "config.pbtxt" not in str(
        found["add1"].versions[1].files
    )


def test_a_bucket_itself_is_a_repository(store: Store, two_models: Path, opened: Open) -> None:
    for file in two_models.rglob("model.onnx"):
        store.put(file.relative_to(two_models).as_posix(), file.read_bytes())
    assert sorted(scan(opened(store.location("")))) == ["add1", "ident"]


def test_a_replaced_object_changes_the_fingerprint_of_its_version_only(
    store: Store, two_models: Path, opened: Open
) -> None:
    store.put_folder(two_models, "m")
    repository = opened(store.location("m"))
    before = {version.version: version.fingerprint for version in scan(repository)["add1"].versions}
    store.put("m/add1/2/model.onnx", (two_models / "add1" / "1" / "model.onnx").read_bytes())
    after = {version.version: version.fingerprint for version in scan(repository)["add1"].versions}
    assert before["1"] == after["1"]
    assert before["2"] != after["2"]


def test_progress_is_reported_up_to_the_last_byte(s3_store: Store, tmp_path: Path, opened: Open) -> None:
    models.slow(tmp_path / "models", size=512, layers=2)  # a megabyte
    s3_store.put_folder(tmp_path / "models", "m")
    repository = opened(s3_store.location("m"))
    heard: list[tuple[int, int]] = []
    model = scan(repository)["slow"]
    fetch(repository, model, heard=heard)
    total = sum(entry.size for entry in model.versions[0].files.values())
    assert heard[-1] == (total, total)
    assert [here for here, _ in heard] == sorted(here for here, _ in heard)


def test_a_store_that_is_cut_off_is_unavailable_and_comes_back(
    store: Store, two_models: Path, opened: Open
) -> None:
    store.put_folder(two_models, "m")
    repository = opened(store.location("m"))
    before = scan(repository)
    store.relay.cut()
    with pytest.raises(Unavailable, match=r"cannot be reached at http://127\.0\.0\.1") as caught:
        scan(repository)
    assert "check the network and the endpoint" in caught.value.message
    store.relay.mend()
    assert scan(repository) == before


def test_a_start_without_the_store_works_from_the_cache(
    store: Store, two_models: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    store.put_folder(two_models, "m")
    first = opened(store.location("m"))
    before = scan(first)
    expected = fetch(first, before["add1"], "2").path.read_bytes()
    store.relay.cut()
    second = opened(store.location("m"))
    with caplog.at_level(logging.WARNING):
        found = scan(second)
    assert found == before
    assert "Serving the files in the cache" in caplog.text
    assert "cannot be reached" in caplog.text
    assert fetch(second, found["add1"], "2").path.read_bytes() == expected


def test_files_that_were_never_fetched_are_unavailable_without_the_store(
    store: Store, two_models: Path, opened: Open
) -> None:
    store.put_folder(two_models, "m")
    found = scan(opened(store.location("m")))
    store.relay.cut()
    with pytest.raises(Unavailable, match="cannot be reached"):
        fetch(opened(store.location("m")), found["ident"])


@pytest.mark.parametrize("store", ["s3", "azure"], indirect=True)
def test_a_bucket_that_does_not_exist_is_named(store: Store, opened: Open) -> None:
    with pytest.raises(NotFound, match="'no-such-place' does not exist at http"):
        scan(opened(f"{store.scheme}://no-such-place/m"))


def test_a_bucket_that_does_not_exist_in_google_cloud_is_named(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    # The cloud's answer; the emulator answers 500.
    web.pages["/no-such-place"] = Page(
        b"<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist.</Message></Error>", 404
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url)
    with pytest.raises(NotFound, match="bucket 'no-such-place' does not exist at http"):
        scan(opened("gs://no-such-place/m"))


def test_a_bucket_that_vanishes_while_serving_is_named(
    s3_store: Store, two_models: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    repository = opened(s3_store.location("m"))
    scan(repository)
    for file in two_models.rglob("*"):
        if file.is_file():
            s3_store.delete(f"m/{file.relative_to(two_models).as_posix()}")
    s3_store.delete_bucket(s3_store.bucket)
    with pytest.raises(NotFound, match=f"bucket '{s3_store.bucket}' does not exist"):
        scan(repository)


def test_a_prefix_without_objects_is_named(store: Store, opened: Open) -> None:
    with pytest.raises(NotFound, match="has no object below 'nothing/here'"):
        scan(opened(store.location("nothing/here")))


def test_an_object_that_vanishes_before_its_fetch_is_named(
    store: Store, two_models: Path, opened: Open
) -> None:
    store.put_folder(two_models, "m")
    repository = opened(store.location("m"))
    model = scan(repository)["ident"]
    store.delete("m/ident/1/model.onnx")
    with pytest.raises(NotFound, match=r"object 'm/ident/1/model\.onnx' does not exist"):
        fetch(repository, model)


def test_an_object_replaced_before_its_fetch_is_not_taken_for_the_old_one(
    store: Store, two_models: Path, opened: Open
) -> None:
    store.put_folder(two_models, "m")
    repository = opened(store.location("m"))
    model = scan(repository)["ident"]
    store.put("m/ident/1/model.onnx", (two_models / "add1" / "1" / "model.onnx").read_bytes())
    with pytest.raises(Unavailable, match="was replaced during the download"):
        fetch(repository, model)


def test_the_error_for_wrong_credentials_says_what_to_set(
    azure_server: Store, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    wrong = azure_server.environment["AZURE_STORAGE_CONNECTION_STRING"].replace("Eby8", "AAAA")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    with pytest.raises(Unavailable, match=r"access is denied .*AZURE_STORAGE_CONNECTION_STRING"):
        scan(opened("az://container/m"))


def test_the_error_for_missing_credentials_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, s3_server: Store, opened: Open
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.environment["AWS_ENDPOINT_URL"])
    # The address of a cloud machine's metadata service, where nothing listens.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID"):
        scan(opened("s3://bucket/m"))


def test_a_public_bucket_needs_no_credentials(
    s3_store: Store, two_models: Path, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert sorted(scan(opened(s3_store.location("m")))) == ["add1", "ident"]


@pytest.mark.parametrize(
    "form", ["s3://127.0.0.1:{port}/{bucket}/m", "s3://http://127.0.0.1:{port}/{bucket}/m"]
)
def test_tritons_forms_of_an_endpoint_are_read(
    form: str, s3_store: Store, two_models: Path, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert sorted(scan(opened(form.format(port=s3_store.relay.port, bucket=s3_store.bucket)))) == [
        "add1",
        "ident",
    ]


def test_tritons_credentials_file_is_read(
    s3_store: Store, two_models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials.json"
    file.write_text('{"s3": {"": {"key_id": "k", "secret_key": "s", "region": "us-east-1"}}}')
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(file))
    assert sorted(scan(opened(s3_store.location("m")))) == ["add1", "ident"]


def test_a_single_object_is_a_model(store: Store, two_models: Path, opened: Open) -> None:
    content = (two_models / "ident" / "1" / "model.onnx").read_bytes()
    store.put("files/detector.onnx", content)
    repository = opened(store.location("files/detector.onnx"))
    found = scan(repository)
    assert list(found) == ["detector"]
    assert fetch(repository, found["detector"]).path.read_bytes() == content


def test_an_object_with_an_impossible_name_is_reported(
    s3_store: Store, two_models: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    s3_store.put("m/../evil", b"x")
    with pytest.raises(
        InvalidArgument, match=r"an object has a name that cannot be a file .*rename or remove it"
    ):
        scan(opened(s3_store.location("")))


def test_without_its_package_a_store_names_the_extra(monkeypatch: pytest.MonkeyPatch, opened: Open) -> None:
    import sys

    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidArgument, match=r"pip install 'backline\[cloud\]'"):
        opened("s3://bucket/models")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("s3://", "names no bucket"),
        ("gs://bucket/../other", "'..' in its path"),
        ("s3://bucket/a?b", "'\\?' or '#'"),
        ("az://container/m", "which account the container belongs to"),
        ("as://container/m", "names no account"),
        ("s3://host:port/bucket", "'host:port' in 's3://host:port/bucket' is not a valid endpoint"),
    ],
)
def test_a_location_that_names_nothing_is_refused(location: str, reason: str, opened: Open) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        opened(location)


def test_an_endpoint_without_a_listener_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, s3_server: Store, opened: Open
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        Unavailable, match=r"cannot be reached at http://127\.0\.0\.1:9 \(Connection refused\)"
    ):
        scan(opened("s3://bucket/models"))


def test_a_web_page_at_the_endpoint_is_reported(
    monkeypatch: pytest.MonkeyPatch, s3_server: Store, web: WebServer, opened: Open
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    with pytest.raises(
        BacklineError, match=r"'bucket' does not exist at http.* correct its name or the endpoint"
    ):
        scan(opened("s3://bucket/models"))


def test_a_removed_cache_is_created_again(
    s3_store: Store, two_models: Path, cache: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    first = opened(s3_store.location("m"))
    fetch(first, scan(first)["ident"])
    shutil.rmtree(cache)
    second = opened(s3_store.location("m"))
    assert fetch(second, scan(second)["ident"]).path.is_file()


def test_empty_objects_that_stand_for_folders_are_not_files(
    s3_store: Store, two_models: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    before = scan(opened(s3_store.location("m")))
    for folder in ("m/", "m/add1/", "m/add1/1/"):
        s3_store.put(folder, b"")
    assert scan(opened(s3_store.location("m"))) == before


@pytest.fixture
def private(tmp_path: Path) -> Iterator[tuple[WebServer, Path]]:
    """A server with a certificate signed by a private authority, and the authority's certificate."""
    authority = make_certificate(tmp_path)
    made = Certificate(tmp_path / "leaf.crt", tmp_path / "leaf.key")
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2",
        "-CA", str(authority.certificate), "-CAkey", str(authority.key), "-subj", "/CN=store",
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(made.key), "-out", str(made.certificate),
    )  # fmt: skip
    with WebServer(made) as running:
        yield running, authority.certificate


def test_a_store_with_a_private_ca_is_reached_with_its_certificate(
    private: tuple[WebServer, Path], monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    web, certificate = private
    web.put("/bucket", b"<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount></ListBucketResult>")
    location = web.url.replace("https://", "s3://https://") + "/bucket"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(
        Unavailable,
        match=r"its certificate is not trusted \(UnknownIssuer\); set SSL_CERT_FILE",
    ):
        scan(opened(location))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert scan(opened(location)) == {}


def test_messages_do_not_contain_the_signature_of_a_url(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    text = (
        f"BlobEndpoint={web.url}/account;AccountName=account;SharedAccessSignature=sv=2021-12-02&sig=SECRET"
    )
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    web.stop()
    with pytest.raises(Unavailable) as caught:
        scan(opened("az://container/m"))
    assert "cannot be reached" in caught.value.message
    assert "SECRET" not in caught.value.message


def listing_of(key: str, content: bytes, etag: str) -> bytes:
    return (
        "<ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount>"
        f"<Contents><Key>{key}</Key><Size>{len(content)}</Size>"
        f'<LastModified>2026-11-24T20:00:00.000Z</LastModified><ETag>"{etag}"</ETag></Contents>'
        "</ListBucketResult>"
    ).encode()


def test_an_etag_that_only_looks_like_a_checksum_is_not_damage(
    web: WebServer, two_models: Path, monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    # Objects encrypted with customer keys are listed like this.
    content, etag = (two_models / "ident" / "1" / "model.onnx").read_bytes(), "0123456789abcdef" * 2
    web.put("/bucket", listing_of("m/ident/1/model.onnx", content, etag))
    page = web.put("/bucket/m/ident/1/model.onnx", content)
    page.validators, page.headers = (
        False,
        {"ETag": f'"{etag}"', "Last-Modified": "Tue, 24 Nov 2026 20:00:00 GMT"},
    )
    for name, value in {
        "AWS_ENDPOINT_URL": web.url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    repository = opened("s3://bucket/m")
    assert fetch(repository, scan(repository)["ident"]).path.read_bytes() == content
    assert web.gets("/bucket/m/ident/1/model.onnx") == 2


def test_a_key_that_is_both_file_and_folder_affects_only_its_model(
    s3_store: Store, two_models: Path, opened: Open
) -> None:
    s3_store.put_folder(two_models, "m")
    s3_store.put("m/ident/1/model.onnx/extra", b"x")
    found = scan(opened(s3_store.location("m")))
    problems = found["ident"].problem + "".join(version.problem for version in found["ident"].versions)
    assert "it is both a file and a folder; rename one of them" in problems
    assert found["add1"].problem == ""
