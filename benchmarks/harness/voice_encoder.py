"""Exports resemblyzer's speaker encoder (Apache-2.0), whose three LSTM layers gain from batching."""

from __future__ import annotations

import warnings
from pathlib import Path

from harness.environment import CannotRun, file_of
from harness.model import Model

NAME = "voice_encoder"
FRAMES, CHANNELS = 160, 40


def write_voice_encoder(path: Path) -> Model:
    """Writes the weights from the resemblyzer wheel as an ONNX file, if missing. Needs torch."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _export(file_of("resemblyzer", "0.1.4", "pretrained.pt"), path)
    return Model(NAME, path, "mels", (1, FRAMES, CHANNELS), 7.0)


def _export(weights: Path, path: Path) -> None:
    try:
        import torch
    except ImportError as error:
        raise CannotRun("exporting the model needs PyTorch (pip install 'backline[torch]')") from error

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(CHANNELS, 256, 3, batch_first=True)
            self.linear = torch.nn.Linear(256, 256)

        def forward(self, mels: torch.Tensor) -> torch.Tensor:
            _, (hidden, _) = self.lstm(mels)
            embedding = torch.relu(self.linear(hidden[-1]))
            return embedding / torch.linalg.vector_norm(embedding, dim=1, keepdim=True)

    encoder = Encoder()
    encoder.load_state_dict(
        torch.load(weights, map_location="cpu", weights_only=True)["model_state"], strict=False
    )
    encoder.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (torch.zeros(2, FRAMES, CHANNELS),),
            str(path),
            input_names=["mels"],
            output_names=["embedding"],
            dynamic_axes={"mels": {0: "N"}, "embedding": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
