"""The measured servers, each with the settings that a careful user would choose."""

from __future__ import annotations

from harness.peers.backline import Backline
from harness.peers.in_process import InProcess
from harness.peers.litserve import LitServe
from harness.peers.mlserver import MLServer
from harness.peers.peer import Peer
from harness.peers.triton import Triton

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Backline, InProcess, Triton, MLServer, LitServe)}
