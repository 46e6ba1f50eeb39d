"""The parts of music_transcription that this example uses: networks, melody, and server processes."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "music_transcription"

sys.path.append(str(FOLDER))

import melody  # noqa: E402
from build_repository import build as build_networks  # noqa: E402
from serving import Process, ProcessError, Server, free_ports  # noqa: E402

__all__ = ["FOLDER", "Process", "ProcessError", "Server", "build_networks", "free_ports", "melody"]
