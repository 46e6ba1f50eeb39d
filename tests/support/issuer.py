"""An issuer of tokens: a key pair, and a server of its public keys."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

_KEYS = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class Issuer:
    """Signs tokens, and can rotate its key. `answer` replaces the response of its server, if set."""

    name = "https://login.example.org/"

    def __init__(self, algorithm: str = "RS256", key: str = "first") -> None:
        self.algorithm = algorithm
        self.published: list[dict[str, Any]] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.fetches = 0
        #: Its OpenID Connect metadata.
        self.metadata: dict[str, Any] = {}
        self.url = ""
        self.rotate(key)

    def rotate(self, key: str, *, publish: bool = True, withdraw: bool = False) -> None:
        """Signs with a new key from now on."""
        self.key, self.private = key, _KEYS[self.algorithm]()
        if withdraw:
            self.published.clear()
        if publish:
            self.publish()

    def publish(self) -> None:
        public = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        self.published.append({**public, "kid": self.key, "use": "sig", "alg": self.algorithm})

    @property
    def key_set(self) -> bytes:
        return json.dumps({"keys": self.published}).encode()

    def claims(self, **changed: Any) -> dict[str, Any]:
        """The claims of a valid token. A claim of None is left out."""
        now = int(time.time())
        claims = {
            "iss": self.name,
            "aud": "backline",
            "sub": "alice",
            "exp": now + 3600,
            "nbf": now - 1,
            "scope": "openid models:infer",
        }
        return {name: value for name, value in {**claims, **changed}.items() if value is not None}

    def token(self, headers: dict[str, Any] | None = None, **changed: Any) -> str:
        """A token signed by this issuer."""
        return jwt.encode(
            self.claims(**changed), self.private, self.algorithm, {"kid": self.key, **(headers or {})}
        )


@contextmanager
def served(issuer: Issuer) -> Iterator[Issuer]:
    """Serves the issuer's public keys over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            status, fields, body = issuer.answer or (200, {}, issuer.key_set)
            if self.path == "/.well-known/openid-configuration":
                body = json.dumps(issuer.metadata).encode()
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    issuer.url = f"http://127.0.0.1:{server.server_port}/keys"
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
