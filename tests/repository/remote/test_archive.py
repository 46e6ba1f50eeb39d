"""Archives and single files on a web server, good and bad."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from backline.backends.registry import FORMATS
from backline.plugins.repositories.web.archive import web_files
from backline.repository.remote.cache import ContentCache
from backline.repository.remote.remote import RemoteRepository
from backline.system.archive_limits import UnpackLimits
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from backline_client.values.names import printable
from support import models
from support.web import Page, WebServer

from .conftest import Open, fetch, scan


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Two models by path."""
    folder = tmp_path / "source"
    models.add1(folder)
    models.ident(folder, dims=(4,))
    (folder / "add1" / "config.pbtxt").write_text("max_batch_size: 8")
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return made.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


FORMS = {
    "models.zip": zipped,
    "models.tar": lambda files: tarred(files, "w"),
    "models.tar.gz": tarred,
    "models.tgz": tarred,
    "models.tar.bz2": lambda files: tarred(files, "w:bz2"),
    "models.tar.xz": lambda files: tarred(files, "w:xz"),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_models_of_an_archive_are_found_and_fetched(
    name: str, web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put(f"/{name}", FORMS[name](files))
    repository = opened(f"{web.url}/{name}")
    found = scan(repository)
    assert sorted(found) == ["add1", "ident"]
    assert found["add1"].config.max_batch_size == 8
    assert fetch(repository, found["add1"]).path.read_bytes() == files["add1/1/model.onnx"]


def test_an_archive_is_downloaded_once_while_it_stays_the_same(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/models.zip", zipped(files))
    first = opened(f"{web.url}/models.zip")
    scan(first)
    fetch(first, scan(first)["ident"])
    scan(opened(f"{web.url}/models.zip"))
    assert web.gets("/models.zip") == 1


def test_a_new_archive_changes_only_the_models_that_differ(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/models.zip", zipped(files))
    repository = opened(f"{web.url}/models.zip")
    before = scan(repository)
    web.put("/models.zip", zipped({**files, "add1/2/model.onnx": files["ident/1/model.onnx"]}))
    after = scan(repository)
    assert [version.version for version in after["add1"].versions] == ["1", "2"]
    assert before["ident"] == after["ident"]
    assert before["add1"].versions[0].fingerprint == after["add1"].versions[0].fingerprint


def test_a_folder_in_an_archive_is_named_after_it(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put(
        "/release.zip",
        zipped(
            {f"release-1.2/models/{path}": content for path, content in files.items()} | {"README.md": b""}
        ),
    )
    assert sorted(scan(opened(f"{web.url}/release.zip#release-1.2/models"))) == ["add1", "ident"]
    with pytest.raises(NotFound, match=r"has no folder 'other'; it holds 'README.md', 'release-1.2'"):
        scan(opened(f"{web.url}/release.zip#other"))


@pytest.mark.parametrize("above", ["models", "release-1.2/models"])
def test_the_only_folder_of_an_archive_is_its_repository(
    above: str, web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/models.tgz", tarred({f"{above}/{path}": content for path, content in files.items()}))
    repository = opened(f"{web.url}/models.tgz")
    found = scan(repository)
    assert sorted(found) == ["add1", "ident"]
    assert found["add1"].config.max_batch_size == 8
    assert fetch(repository, found["add1"]).path.read_bytes() == files["add1/1/model.onnx"]
    with pytest.raises(NotFound, match=rf"did you mean '{web.url}/models.tgz#{above}/add1'\?"):
        scan(opened(f"{web.url}/models.tgz#add1"))


def test_an_archive_with_several_folders_says_which_to_name(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put(
        "/all.tgz",
        tarred({f"models/{path}": content for path, content in files.items()} | {"docs/add1.md": b""}),
    )
    problem = scan(opened(f"{web.url}/all.tgz"))["models"].problem
    assert f"'{web.url}/all.tgz#models' has no version, but contains models" in problem


def test_a_start_without_the_server_works_from_the_cache(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/models.tgz", tarred(files))
    before = scan(opened(f"{web.url}/models.tgz"))
    web.stop()
    repository = opened(f"{web.url}/models.tgz")
    assert scan(repository) == before
    assert fetch(repository, before["ident"]).path.read_bytes() == files["ident/1/model.onnx"]


def test_content_lost_by_the_cache_is_unpacked_again(
    web: WebServer, files: dict[str, bytes], cache: Path, opened: Open
) -> None:
    web.put("/models.zip", zipped(files))
    repository = opened(f"{web.url}/models.zip")
    found = scan(repository)
    for blob in (cache / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    assert fetch(repository, found["ident"]).path.read_bytes() == files["ident/1/model.onnx"]


def test_the_archive_itself_is_not_kept(
    web: WebServer, files: dict[str, bytes], cache: Path, opened: Open
) -> None:
    web.put("/models.zip", zipped(files))
    scan(opened(f"{web.url}/models.zip"))
    assert len([blob for blob in (cache / "blobs").rglob("*") if blob.is_file()]) == len(files)


BAD_NAMES = {
    "../evil.onnx": "contains '..', which may lead outside the repository",
    "a/../../evil.onnx": "contains '..', which may lead outside the repository",
    "/etc/evil.onnx": "absolute",
    "a\\b.onnx": "a backslash",
    "a//b.onnx": "an empty part",
    "a/\n.onnx": "cannot be printed",
    "A/1/Model.onnx": "there is already 'a/1/model.onnx'",
    "a/" + "x" * 256: "longer than 255 bytes",
}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_member_with_a_bad_name_is_refused(
    name: str, pack: Callable[[Mapping[str, bytes]], bytes], web: WebServer, opened: Open, tmp_path: Path
) -> None:
    web.put(
        "/models.bin.zip" if pack is zipped else "/models.tgz", pack({"a/1/model.onnx": b"x", name: b"y"})
    )
    with pytest.raises(InvalidArgument, match=BAD_NAMES[name]) as caught:
        scan(opened(web.url + next(iter(web.pages))))
    assert f"member '{printable(name)}'" in caught.value.message
    assert not (tmp_path / "evil.onnx").exists()


def test_a_nul_in_a_name_is_refused(web: WebServer, opened: Open) -> None:
    # zipfile does not write such a name, and cuts it at the NUL when reading.
    web.put("/models.zip", zipped({"a/1/model.onnxQevil": b"y"}).replace(b"onnxQevil", b"onnx\0evil"))
    with pytest.raises(InvalidArgument, match=r"'a/1/model.onnx\\x00evil' is refused: its name has a NUL"):
        scan(opened(f"{web.url}/models.zip"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "it is a link"),
        (tarfile.LNKTYPE, "it is a link"),
        (tarfile.CHRTYPE, "it is a device or a pipe"),
        (tarfile.BLKTYPE, "it is a device or a pipe"),
        (tarfile.FIFOTYPE, "it is a device or a pipe"),
    ],
)
def test_a_tar_member_that_is_not_a_file_is_refused(
    kind: bytes, reason: str, web: WebServer, opened: Open
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo("a/1/model.onnx")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    web.put("/models.tgz", made.getvalue())
    with pytest.raises(InvalidArgument, match=f"member 'a/1/model.onnx' is refused: {reason}"):
        scan(opened(f"{web.url}/models.tgz"))


def test_a_link_in_a_zip_is_refused(web: WebServer, opened: Open) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("a/1/model.onnx")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    web.put("/models.zip", made.getvalue())
    with pytest.raises(InvalidArgument, match=r"member 'a/1/model.onnx' is refused: it is a link"):
        scan(opened(f"{web.url}/models.zip"))


def limited(location: str, cache: Path, limits: UnpackLimits) -> RemoteRepository:
    contents = ContentCache(cache)
    files = web_files(location, FORMATS, contents, limits)
    return RemoteRepository(files, contents, formats=FORMATS, nested=True)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_inflates_too_much_is_refused(
    pack: Callable[[Mapping[str, bytes]], bytes], web: WebServer, cache: Path
) -> None:
    web.put("/bomb.zip" if pack is zipped else "/bomb.tgz", pack({"a/1/model.onnx": bytes(5_000_000)}))
    with pytest.raises(
        InvalidArgument,
        match=r"member 'a/1/model.onnx' is refused: the archive unpacks to more than the 1,000,000",
    ):
        scan(limited(web.url + next(iter(web.pages)), cache, UnpackLimits(harmless=1_000_000)))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_of_too_many_members_is_refused(
    pack: Callable[[Mapping[str, bytes]], bytes], web: WebServer, cache: Path
) -> None:
    web.put(
        "/many.zip" if pack is zipped else "/many.tgz",
        pack({f"folder{number}/notes.txt": b"" for number in range(20)}),
    )
    with pytest.raises(InvalidArgument, match="more than 10 files"):
        scan(limited(web.url + next(iter(web.pages)), cache, UnpackLimits(files=10)))


def test_a_huge_header_is_refused(web: WebServer, opened: Open) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo("a" * 5_000_000)
        archive.addfile(member)
    web.put("/models.tgz", made.getvalue())
    with pytest.raises(InvalidArgument, match="one of its headers is too large"):
        scan(opened(f"{web.url}/models.tgz"))


def test_endless_headers_are_refused(web: WebServer, opened: Open) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 900 * tarfile.BLOCKSIZE
    header = long_name.tobuf(tarfile.GNU_FORMAT) + b"a" * long_name.size
    web.put("/models.tar", header * 3 + tarfile.TarInfo("a").tobuf() + bytes(2 * tarfile.BLOCKSIZE))
    with pytest.raises(InvalidArgument, match="one of its headers is too large"):
        scan(opened(f"{web.url}/models.tar"))


def test_many_empty_files_in_a_row_are_read(web: WebServer, opened: Open) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number in range(3000):
            archive.addfile(tarfile.TarInfo(f"a/1/{number}"))
    web.put("/models.tar", made.getvalue())
    assert list(scan(opened(f"{web.url}/models.tar"))) == ["a"]


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_archive_is_reported(name: str, web: WebServer, opened: Open) -> None:
    content = FORMS[name]({"a/1/model.onnx": bytes(range(256)) * 1000})
    web.put(f"/{name}", content[: len(content) // 2])
    with pytest.raises(InvalidArgument, match=rf"archive '.*/{re.escape(name)}' is damaged.*upload it again"):
        scan(opened(f"{web.url}/{name}"))


@pytest.mark.parametrize("name", FORMS)
def test_a_file_that_is_not_an_archive_is_reported(name: str, web: WebServer, opened: Open) -> None:
    web.put(f"/{name}", b"<html>sign in first</html>" * 100)
    with pytest.raises(InvalidArgument, match="is damaged, or not of the kind that its name says"):
        scan(opened(f"{web.url}/{name}"))


def test_a_wrong_checksum_in_a_zip_is_reported(web: WebServer, opened: Open) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/1/model.onnx", b"the content of a model")
    web.put("/models.zip", made.getvalue().replace(b"the content", b"THE CONTENT"))
    with pytest.raises(InvalidArgument, match=r"Bad CRC-32 for file 'a/1/model\.onnx'"):
        scan(opened(f"{web.url}/models.zip"))


def test_a_url_of_neither_archive_nor_model_is_refused(opened: Open) -> None:
    with pytest.raises(
        InvalidArgument, match=r"is neither an archive nor a model file; expected a name that ends with \.zip"
    ):
        opened("https://example.org/models/")


def test_one_file_is_a_model(web: WebServer, files: dict[str, bytes], opened: Open) -> None:
    web.put("/files/detector.onnx", files["ident/1/model.onnx"])
    repository = opened(f"{web.url}/files/detector.onnx")
    assert fetch(repository, scan(repository)["detector"]).path.read_bytes() == files["ident/1/model.onnx"]


def test_a_replaced_file_changes_the_fingerprint(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/detector.onnx", files["ident/1/model.onnx"])
    repository = opened(f"{web.url}/detector.onnx")
    before = scan(repository)["detector"].versions[0].fingerprint
    web.put("/detector.onnx", files["add1/1/model.onnx"])
    assert scan(repository)["detector"].versions[0].fingerprint != before


def test_a_file_replaced_between_scan_and_fetch_is_reported(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/detector.onnx", files["ident/1/model.onnx"])
    repository = opened(f"{web.url}/detector.onnx")
    found = scan(repository)["detector"]
    web.put("/detector.onnx", files["add1/1/model.onnx"])
    with pytest.raises(Unavailable, match="was replaced during the download"):
        fetch(repository, found)


def test_get_is_used_on_a_server_without_head(web: WebServer, files: dict[str, bytes], opened: Open) -> None:
    web.put("/detector.onnx", files["ident/1/model.onnx"]).head = False
    repository = opened(f"{web.url}/detector.onnx")
    assert fetch(repository, scan(repository)["detector"]).path.read_bytes() == files["ident/1/model.onnx"]


def test_without_validators_a_change_is_noticed_by_the_size(
    web: WebServer, files: dict[str, bytes], opened: Open
) -> None:
    web.put("/detector.onnx", files["ident/1/model.onnx"]).validators = False
    repository = opened(f"{web.url}/detector.onnx")
    before = scan(repository)["detector"]
    assert fetch(repository, before).path.read_bytes() == files["ident/1/model.onnx"]
    web.put("/detector.onnx", files["add1/1/model.onnx"]).validators = False
    after = scan(repository)["detector"]
    assert fetch(repository, after).path.read_bytes() == files["add1/1/model.onnx"]


@pytest.mark.parametrize(
    ("page", "error", "reason"),
    [
        (Page(status=404), NotFound, r"does not exist \(status 404\); check the URL"),
        (
            Page(status=403),
            Unavailable,
            r"access is denied \(status 403\); put the user name and password into the URL",
        ),
        (Page(status=503), Unavailable, r"is not available at the moment \(status 503"),
        (
            Page(status=302, headers={"Location": "file:///etc/passwd"}),
            Unavailable,
            "redirects to 'file:///etc/passwd', which is not a web address",
        ),
        (
            Page(status=302, headers={"Location": "/detector.onnx"}),
            Unavailable,
            "redirects more than 5 times",
        ),
    ],
)
def test_refusals_of_a_server_are_reported(
    page: Page, error: type[BacklineError], reason: str, web: WebServer, opened: Open
) -> None:
    web.pages["/detector.onnx"] = page
    with pytest.raises(error, match=reason):
        scan(opened(f"{web.url}/detector.onnx"))


def test_an_address_without_a_listener_is_reported(opened: Open) -> None:
    with pytest.raises(
        Unavailable, match="cannot be reached: Connection refused; check the URL and the network"
    ):
        scan(opened("http://127.0.0.1:9/detector.onnx"))


def test_secrets_are_sent_only_to_the_host(web: WebServer, files: dict[str, bytes], opened: Open) -> None:
    with WebServer() as elsewhere:
        elsewhere.put("/detector.onnx", files["ident/1/model.onnx"])
        web.pages["/detector.onnx"] = Page(status=302, headers={"Location": f"{elsewhere.url}/detector.onnx"})
        repository = opened(
            web.url.replace("http://", "http://user:secret@") + "/detector.onnx?signature=hidden"
        )
        fetch(repository, scan(repository)["detector"])
        assert all("authorization" not in asked.headers for asked in elsewhere.asked)
    assert {asked.headers.get("authorization") for asked in web.asked} == {"Basic dXNlcjpzZWNyZXQ="}
    assert {asked.path for asked in web.asked} == {"/detector.onnx?signature=hidden"}
    assert repository.location == f"{web.url}/detector.onnx"


def test_a_full_disk_while_unpacking_is_reported(
    web: WebServer, files: dict[str, bytes], opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put("/models.zip", zipped(files))
    repository = opened(f"{web.url}/models.zip")

    def full(cache: ContentCache, needed: int) -> None:
        raise cache.full("hold the files of the version", needed)

    monkeypatch.setattr(ContentCache, "check_space", full)
    with pytest.raises(Unavailable, match="is full"):
        scan(repository)
