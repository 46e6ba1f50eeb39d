"""Reads models from the Hugging Face hub, or from another server that has the hub's HTTP API."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin

from backline.engine.config.model_config import ModelFormat
from backline.repository.layouts.hub import find_served, hub_name
from backline.repository.listing import FileEntry, Listing
from backline.repository.remote.cache import ContentCache
from backline.repository.remote.files import GIT, SHA256, Opened
from backline.repository.remote.http_client import HttpClient, WebResponse, origin
from backline_client.values.errors import InvalidArgument, NotFound, Unavailable

_HUB = "https://huggingface.co"
_FORM = (
    "expected hf://owner/repo, hf://owner/repo@revision, hf://owner/repo/path or hf://owner/repo:model.onnx"
)
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
#: The maximum size, in bytes, of a page of a listing. A page describes at most 1,000 files, each with a few
#: hundred bytes.
_MAX_PAGE = 64 << 20
_MAX_FILES = 100_000
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')


class HubFiles:
    """The RemoteFiles of hf://owner/repo[@revision][/path][:file], a repository on the hub, at one commit.

    A revision is a branch, a tag or a commit; the default is "main", and a "/" in it is written "%2F". `file`
    is the path or the name of the model's file; if `file` is left out, `find_served` chooses a file. The
    environment variable HF_TOKEN gives access to private repositories, and HF_ENDPOINT names another server.
    """

    def __init__(self, location: str, formats: Sequence[ModelFormat]) -> None:
        """Raises InvalidArgument for an invalid location or HF_ENDPOINT."""
        self._location = location
        self._formats = formats
        place, colon, wanted = re.sub(r"^hf:/*", "", location).partition(":")
        owner, _, rest = place.partition("/")
        repo, _, path = rest.strip("/").partition("/")
        repo, _, revision = repo.partition("@")
        if (
            not _NAME.fullmatch(owner)
            or not _NAME.fullmatch(repo)
            or any(p in {"", ".", ".."} for p in path.split("/") if path)
            or any(p in {"", ".", ".."} for p in wanted.split("/") if colon)
        ):
            raise InvalidArgument(f"'{location}' is not a location on the hub; {_FORM}")
        self._repo = f"{owner}/{repo}"
        self._revision = unquote(revision) or "main"
        self._path = path
        self._wanted = wanted
        self._name = repo if wanted else hub_name(repo, path, formats)
        self._endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        if not self._endpoint.startswith(("http://", "https://")):
            raise InvalidArgument(f"HF_ENDPOINT is '{self._endpoint}'; expected a URL such as {_HUB}")
        token = _token()
        self._client = HttpClient(
            self._endpoint,
            authorization=f"Bearer {token}" if token else "",
            denied=f"accept the conditions of '{self._repo}' on the hub, or use a token that may read it"
            " (HF_TOKEN)"
            if token
            else f"'{self._repo}' does not exist, or is private: check the name, or set HF_TOKEN to a token"
            " that may read it",
        )
        self._commit = ""
        #: The folder to which the paths of `files` are relative.
        self._base = path

    @property
    def location(self) -> str:
        return self._location

    @property
    def name(self) -> str:
        return self._name

    def files(self) -> Mapping[str, FileEntry]:
        self._commit = self._resolve()
        base, wanted = self._path, self._wanted
        try:
            found = self._tree(base)
        except NotFound:
            # The path may name a file. Only the listing of its folder shows whether it does.
            base, _, wanted = base.rpartition("/")
            found = [] if self._wanted else self._tree(base)
            if not any(item["path"] == self._path for item in found):
                found = []
        cut = len(base) + 1 if base else 0
        files = {item["path"][cut:]: _entry(item) for item in found if item["type"] == "file"}
        if not files:
            raise NotFound(
                f"'{self._location}' holds no files at revision '{self._revision}'; check the path after the"
                " repository's name"
            )
        folder, served = find_served(
            Listing(self._location, files, frozenset(), _unread), self._formats, wanted
        )
        self._base = "/".join(part for part in (base, folder) if part)
        return served

    def _resolve(self) -> str:
        """Returns the current commit of the revision. Both the listing and the files are then read from this
        commit, so that they match.
        """
        url = f"{self._endpoint}/api/models/{self._repo}/revision/{quote(self._revision, safe='')}"
        try:
            found, _ = self._json(url)
        except NotFound:
            raise NotFound(
                f"'{self._location}': the hub has no repository '{self._repo}' with revision"
                f" '{self._revision}'; check both"
            ) from None
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not commit:
            raise self._odd(url)
        return commit

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        below = f"/{quote(folder)}" if folder else ""
        url = f"{self._endpoint}/api/models/{self._repo}/tree/{self._commit}{below}?recursive=true"
        items: list[dict[str, Any]] = []
        while url:
            page, following = self._json(url)
            # An empty page that names a next page is rejected, because otherwise this loop might never end.
            if not isinstance(page, list) or not all(map(_is_item, page)) or (following and not page):
                raise self._odd(url)
            items += page
            if len(items) > _MAX_FILES:
                raise InvalidArgument(
                    f"'{self._location}' has more than {_MAX_FILES:,} files; name a folder in it: {_FORM}"
                )
            if following and origin(following) != origin(self._endpoint):
                raise self._odd(url)
            url = following
        return items

    def _json(self, url: str) -> tuple[Any, str]:
        """Returns the document at a URL of the API, and the URL of the next page, if there is one."""
        with self._client.request(url) as answer:
            try:
                body = answer.body.read(_MAX_PAGE + 1)
            except (OSError, HTTPException):
                raise self._odd(url) from None
            following = _NEXT.search(answer.headers.get("Link", ""))
        try:
            if len(body) > _MAX_PAGE:
                raise ValueError
            return json.loads(body), urljoin(url, following[1]) if following else ""
        except (ValueError, RecursionError):
            raise self._odd(url) from None

    def _odd(self, url: str) -> Unavailable:
        return Unavailable(
            f"'{self._location}': {url} does not respond as the hub does; check HF_ENDPOINT"
            f" ('{self._endpoint}')"
        )

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        if not self._commit:  # the listing came from the cache
            self.files()
        full = f"{self._base}/{path}" if self._base else path
        return self._client.open_from(
            f"{self._endpoint}/{self._repo}/resolve/{self._commit}/{quote(full)}", offset, _accept
        )

    def close(self) -> None:
        """Does nothing: no connection is kept open."""


def hub_files(location: str, formats: Sequence[ModelFormat], contents: ContentCache) -> HubFiles:
    """Returns the files of a repository on the hub."""
    return HubFiles(location, formats)


def _unread(path: str) -> bytes:
    raise AssertionError(f"{path}: the model is found by names alone")


def _accept(answer: WebResponse) -> None:
    """Accepts any response, because the content will be verified by its hash."""


def _is_item(item: object) -> bool:
    """Returns whether an element of a listing has the form that the hub sends. Its path is checked later, by
    `checked`.
    """
    if not isinstance(item, dict):
        return False
    path, size, large = item.get("path"), item.get("size", 0), item.get("lfs") or {}
    return (
        isinstance(path, str)
        and isinstance(item.get("type"), str)
        and isinstance(large, dict)
        and all(type(one) is int and one >= 0 for one in (size, large.get("size", 0)))
    )


def _entry(item: dict[str, Any]) -> FileEntry:
    """Returns the entry of a file. A large file is identified by the SHA-256 of its content, any other file
    by git's hash.
    """
    large = item.get("lfs")
    if large and large.get("oid"):
        return FileEntry(
            large.get("size", item.get("size", 0)), SHA256 + str(large["oid"]).removeprefix("sha256:")
        )
    return FileEntry(item.get("size", 0), GIT + str(item.get("oid", "")))


def _token() -> str:
    """Returns the token in the environment variable HF_TOKEN (or its older name). If there is none, returns
    the token that `hf auth login` has saved, or an empty string.
    """
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
