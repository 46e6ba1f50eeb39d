"""Model archives, made without torch-model-archiver."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

HANDLER = Path(__file__).parent.parent / "dialects" / "torchserve" / "handler.py"


def pack(path: Path, version: str = "1.0", name: str = "echo", handler: Path = HANDLER) -> Path:
    """Packs an archive with a handler."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {"modelName": name, "modelVersion": version, "handler": "handler.py"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.write(handler, "handler.py")
    return path
