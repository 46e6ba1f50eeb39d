"""A stand-in for the Hugging Face hub: two calls of its API, and downloads that redirect like the real
ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from support.web import Page, WebServer

COMMIT = "1b2d3f"
#: Files above this size are stored by the SHA-256 of their content, as in git's large file storage.
LARGE = 200


def publish(
    web: WebServer,
    store: WebServer,
    repo: str,
    files: Mapping[str, bytes],
    *,
    revision: str = "main",
    page_size: int = 1000,
) -> None:
    """Turns `web` into a hub with one repository, whose large files come from `store`."""
    web.put(f"/api/models/{repo}/revision/{revision}", json.dumps({"id": repo, "sha": COMMIT}).encode())
    folders = {path[:cut] for path in files for cut in range(len(path)) if path[cut] == "/"}
    for folder in ("", *folders):
        items = [
            _item(path, content)
            for path, content in files.items()
            if not folder or path.startswith(folder + "/")
        ]
        items += [
            {"type": "directory", "oid": "0", "size": 0, "path": path}
            for path in folders
            if path.startswith(folder) and path != folder
        ]
        base = f"/api/models/{repo}/tree/{COMMIT}{'/' if folder else ''}{folder}?recursive=true"
        for start in range(0, len(items), page_size):
            page = Page(json.dumps(items[start : start + page_size]).encode())
            if start + page_size < len(items):
                page.headers["Link"] = f'<{web.url}{base}&cursor={start + page_size}>; rel="next"'
            web.pages[base + (f"&cursor={start}" if start else "")] = page
    for path, content in files.items():
        where = f"/{repo}/resolve/{COMMIT}/{path}"
        web.pages[where] = Page(content)
        if len(content) > LARGE:
            store.put(f"/{hashlib.sha256(content).hexdigest()}", content)
            web.pages[where] = Page(
                status=302, headers={"Location": f"{store.url}/{hashlib.sha256(content).hexdigest()}"}
            )


def _item(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    item: dict[str, object] = {"type": "file", "oid": oid, "size": len(content), "path": path}
    if len(content) > LARGE:
        item["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
    return item
