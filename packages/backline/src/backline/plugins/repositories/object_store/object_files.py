"""Reads models from object stores: S3 and compatible stores, Google Cloud Storage, and Azure Blob Storage."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backline.engine.config.model_config import ModelFormat
from backline.plugins.repositories.object_store.object_location import (
    CREDENTIALS,
    ObjectLocation,
    parse_location,
)
from backline.repository.listing import FileEntry
from backline.repository.remote.files import MD5, Opened, Unreachable
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from backline.repository.remote.cache import ContentCache

#: With these limits, a store that does not respond is detected within seconds; the next poll tries again.
_CONNECT_SECONDS = 5
_READ_SECONDS = 15
_RETRIES = 2
_RETRY_SECONDS = 10
#: obstore's limit for the duration of a request, in days. It is so high that it is never reached, because
#: downloading a large file may take a long time.
_REQUEST_DAYS = 7
_CHUNK = 1 << 20
#: The maximum number of objects in a model repository.
_MAX_OBJECTS = 200_000
#: Matches an ETag that is an MD5. The ETag of a multipart upload does not match, because it contains a dash.
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]+)")
#: Patterns that find the cause of the error "error sending request" in the debugging part of obstore's
#: messages.
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_CAUSES = (
    re.compile(r'\bmessage: "([^"]+)"'),
    re.compile(r'\berror: "([^"]+)"'),
    re.compile(r"\b(TimedOut)\b"),
)
#: Texts in an error that indicate missing credentials. Without credentials, obstore asks the metadata service
#: of a cloud for some, and the error names the URL of that service.
_NO_CREDENTIALS = (
    "/latest/api/token",
    "/latest/meta-data",
    "/computeMetadata/",
    "/metadata/identity",
    "token request",
    "Missing account",
)
_NOT_THERE = ("NoSuchBucket", "ContainerNotFound")


class ObjectReplaced(Exception):
    """Raised when an object has changed since the writer read it."""


class ObjectFiles:
    """The RemoteFiles for a prefix of a bucket: the objects below the prefix, or the single object whose key
    is the prefix.

    See `parse_location` for the forms of `location`, and for the errors that an invalid location raises.
    Errors refer to the prefix as `what`.
    """

    def __init__(self, location: str, what: str = "model repository") -> None:
        self._place = parse_location(location)
        self._location = location
        self._what = what
        self._store = _open_store(location, self._place, what)
        self._single = False

    @property
    def location(self) -> str:
        return self._location

    @property
    def name(self) -> str:
        last = (self._place.prefix or self._place.bucket).rpartition("/")[2]
        return Path(last).stem if self._single else last

    def files(self) -> Mapping[str, FileEntry]:
        import obstore

        prefix = self._place.prefix
        cut = len(prefix) + 1 if prefix else 0
        files: dict[str, FileEntry] = {}
        with self._explained(prefix):
            for page in obstore.list(self._store, prefix=prefix or None):
                files |= {found["path"][cut:]: _entry(found) for found in page}
                if len(files) > _MAX_OBJECTS:
                    raise InvalidArgument(
                        f"'{self._location}' has more than {_MAX_OBJECTS:,} objects; add the prefix under"
                        f" which the {self._bucket} holds the models to the URL"
                    )
        # Tools that show folders store an empty object for each folder. Such objects are not files.
        folders = {path[:end] for path in files for end in range(len(path)) if path[end] == "/"}
        files = {
            path: entry for path, entry in files.items() if path and not (entry.size == 0 and path in folders)
        }
        self._single = False
        return files or self._one_object()

    def _one_object(self) -> Mapping[str, FileEntry]:
        import obstore

        prefix = self._place.prefix
        if not prefix:
            return {}
        try:
            with self._explained(prefix):
                found = obstore.head(self._store, prefix)
        except NotFound:
            raise NotFound(
                f"'{self._location}' holds nothing: the {self._bucket} has no object below '{prefix}'; "
                "upload models there, or correct the path"
            ) from None
        self._single = True
        return {prefix.rpartition("/")[2]: _entry(found)}

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        import obstore

        key = self._place.prefix if self._single else self._key(path)
        with self._explained(key):
            got = obstore.get(self._store, key, options={"range": {"offset": offset}} if offset else {})
        if _entry(got.meta) != FileEntry(entry.size, entry.identity):
            raise Unavailable(
                f"'{self._location}': object '{key}' was replaced during the download; the next scan will"
                " find the new object",
                1,
            )
        return Opened(got.range[0], self._chunks(key, got.stream(_CHUNK)))

    def _chunks(self, key: str, stream: Any) -> Iterator[bytes]:
        with self._explained(key):
            for chunk in stream:
                yield bytes(chunk)

    def _key(self, path: str) -> str:
        prefix = self._place.prefix
        return f"{prefix}/{path}" if prefix else path

    def read(self, path: str, most: int) -> tuple[bytes, str] | None:
        """Returns the content of a small object below the prefix, and the revision to pass to `replace`; None
        if there is no such object.

        Raises InvalidArgument if the object has more than `most` bytes, without reading much more than that.
        """
        import obstore

        key = self._key(path)
        try:
            with self._explained(key):
                got = obstore.get(self._store, key)
                data = bytearray()
                for chunk in got.stream(_CHUNK):
                    data += chunk
                    if len(data) > most:
                        raise InvalidArgument(
                            f"{self._what} '{self._location}': object '{key}' has more than the"
                            f" {most >> 20} MiB allowed"
                        )
                return bytes(data), _revision(got.meta)
        except NotFound:
            # This listing raises an error if the whole bucket is missing, and not only the object.
            with self._explained(key):
                next(iter(obstore.list(self._store, prefix=key, chunk_size=1)), None)
            return None

    def replace(self, path: str, data: bytes, revision: str) -> str:
        """Writes an object if its revision is still `revision` ("" means that the object must not exist yet).

        Returns the new revision. Raises ObjectReplaced if the object has another revision because another
        writer was faster.
        """
        import obstore
        import obstore.exceptions as obstore_errors

        key = self._key(path)
        try:
            with self._explained(key, (obstore_errors.PreconditionError, obstore_errors.AlreadyExistsError)):
                mode: Any = json.loads(revision) if revision else "create"
                done = obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        except (obstore_errors.PreconditionError, obstore_errors.AlreadyExistsError):
            raise ObjectReplaced from None
        return _revision(done)

    def close(self) -> None:
        """Does nothing: the store closes its connections when it is garbage-collected."""

    @property
    def _bucket(self) -> str:
        return f"{'container' if self._place.kind == 'az' else 'bucket'} '{self._place.bucket}'"

    @contextlib.contextmanager
    def _explained(self, key: str, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Converts errors of obstore, except those in `passed`, to BacklineErrors with advice on what to
        do.
        """
        import obstore.exceptions as obstore_errors

        try:
            yield
        except passed:
            raise
        except (obstore_errors.BaseError, FileNotFoundError, PermissionError, ValueError) as error:
            raise self._explain(error, key) from None

    def _explain(self, error: Exception, key: str) -> BacklineError:
        import obstore.exceptions as obstore_errors

        text = str(error).partition("\n\nDebug source")[0]
        code = found[1] if (found := _CODE.search(text)) else ""
        status = int(found[1]) if (found := _STATUS.search(text)) else 0
        message = found[1].rstrip(".") if (found := _MESSAGE.search(text)) else ""
        reason = ": ".join(part for part in (code, message) if part) or _last_line(text)
        where = f"{self._what} '{self._location}'"
        if isinstance(error, obstore_errors.InvalidPathError):
            return InvalidArgument(
                f"{where}: an object has a name that cannot be a file ({_last_line(text)}); rename or remove"
                " it"
            )
        if any(sign in text for sign in _NO_CREDENTIALS):
            return Unavailable(
                f"{where}: no credentials were found; {CREDENTIALS[self._place.kind]} ({reason})"
            )
        if code in _NOT_THERE or (status == 404 and "list request" in text):
            return NotFound(
                f"{where}: the {self._bucket} does not exist{self._at_endpoint}; create it, or correct its"
                " name or the endpoint"
            )
        if isinstance(error, FileNotFoundError) or status == 404:
            return NotFound(f"{where}: object '{key}' does not exist, or was removed")
        if status in {401, 403} or isinstance(
            error,
            obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError | PermissionError,
        ):
            return Unavailable(f"{where}: access is denied ({reason}); {CREDENTIALS[self._place.kind]}")
        if status in {301, 307, 308}:
            return Unavailable(
                f"{where}: the store redirects elsewhere ({reason}); set AWS_REGION to the region of the"
                f" {self._bucket}"
            )
        if 400 <= status < 500 and status not in {408, 429}:
            return Unavailable(
                f"{where}: the store refused the request with status {status} ({reason}); check the"
                f" endpoint{self._at_endpoint}"
            )
        if found := _CERTIFICATE.search(str(error)):
            return Unreachable(
                f"{where} cannot be reached{self._at_endpoint}: its certificate is not trusted ({found[1]}); "
                "set SSL_CERT_FILE or AWS_CA_BUNDLE to a file with the certificate of its authority",
                retry_after=_RETRY_SECONDS,
            )
        reason = next((found[1] for cause in _CAUSES if (found := cause.search(str(error)))), reason)
        return Unreachable(
            f"{where} cannot be reached{self._at_endpoint} ({reason}); check the network and the endpoint",
            retry_after=_RETRY_SECONDS,
        )

    @property
    def _at_endpoint(self) -> str:
        endpoint = self._place.options.get("endpoint") or self._place.options.get("base_url")
        return f" at {endpoint}" if endpoint else ""


def object_files(location: str, formats: Sequence[ModelFormat], contents: ContentCache) -> ObjectFiles:
    """Returns the files of a bucket."""
    return ObjectFiles(location)


def _open_store(location: str, place: ObjectLocation, what: str) -> ObjectStore:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError:
        raise InvalidArgument(
            f"{what} '{location}' needs the package obstore; install it with: pip install 'backline[cloud]'"
        ) from None
    options: dict[str, Any] = dict(place.options)
    endpoint = options.get("endpoint") or options.get("base_url") or ""
    authorities = os.environ.get("AWS_CA_BUNDLE") if place.kind == "s3" else None
    options["client_options"] = {
        "allow_http": endpoint.startswith("http://") or bool(options.get("use_emulator")),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=_READ_SECONDS),
        "timeout": timedelta(days=_REQUEST_DAYS),
    }
    if authorities := authorities or os.environ.get("SSL_CERT_FILE"):
        options["client_options"]["root_certificate"] = _read_certificates(authorities)
    options["retry_config"] = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
    try:
        if place.kind == "s3":
            return S3Store(place.bucket, **options)
        if place.kind == "gs":
            return GCSStore(place.bucket, **options)
        return AzureStore(place.bucket, **options)
    except (BaseError, ValueError, OSError) as error:
        reason = _last_line(str(error).partition("\n\nDebug source")[0])
        raise InvalidArgument(
            f"{what} '{location}' cannot be opened ({reason}); {CREDENTIALS[place.kind]}"
        ) from None


def _read_certificates(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"the certificates in '{file}' (AWS_CA_BUNDLE or SSL_CERT_FILE) cannot be read: {error.strerror}"
        ) from None


def _entry(found: Any) -> FileEntry:
    etag = (found["e_tag"] or "").strip('"')
    if _MD5_ETAG.fullmatch(etag):
        return FileEntry(found["size"], MD5 + etag)
    # If there is no ETag, the modification time is used, which distinguishes changes that are at least a
    # second apart.
    return FileEntry(
        found["size"],
        f"etag:{etag}" if etag else f"modified:{found['last_modified'].replace(microsecond=0).isoformat()}",
    )


def _revision(found: Any) -> str:
    """Returns the ETag and version of an object as JSON. Google Cloud Storage compares versions; other stores
    may have none.
    """
    given = {name: found[name] for name in ("e_tag", "version") if found.get(name)}
    return json.dumps(given, sort_keys=True)


def _last_line(text: str) -> str:
    """Returns the reason in an obstore message. The queries of URLs are removed, because they may contain
    signatures.
    """
    return re.sub(r"\?\S+", "", text.strip().rpartition("\n")[2].rpartition(" - ")[2]).strip()
