"""Python models with images and sounds as inputs and outputs, over HTTP and gRPC."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

import backline
from backline_client.values.errors import BacklineError
from support.repositories import put
from support.server import ServerProcess, serve

pillow = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
CAT = (
    Path(find_spec("skimage").origin or "").parent / "data" / "chelsea.png"
    if find_spec("skimage")
    else Path()
)
pytestmark = pytest.mark.skipif(not CAT.name, reason="scikit-image is not installed")

MODELS = {
    "negative": """
from backline.model import Image

class Model:
    decoded_limit_bytes = 2_000_000

    def predict(self, image: Image) -> Image:
        return 255 - image
""",
    "size": """
from PIL import Image

class Model:
    def predict(self, image: Image.Image) -> dict:
        return {"size": image.size, "mode": image.mode}
""",
    "louder": """
from typing import NamedTuple
from backline.model import Audio

class Louder(NamedTuple):
    audio: Audio[8000, 1, "FLAC"]
    seconds: float

class Model:
    def predict(self, audio: Audio[8000], gain: float = 2.0) -> Louder:
        return Louder((audio * gain).clip(-1, 1), len(audio) / 8000)
""",
    "length": """
from backline.model import Audio

class Model:
    def predict(self, audio: Audio[8000]) -> int:
        return len(audio)
""",
    "halves": """
from collections.abc import Iterator
from backline.model import Audio

class Model:
    def predict(self, audio: Audio[8000, 2]) -> Iterator[Audio[8000, 2]]:
        half = audio.shape[1] // 2
        yield audio[:, :half]
        yield audio[:, half:]
""",
    "wrong": """
from backline.model import Image

class Model:
    def predict(self, image: Image) -> Image:
        return image[0]
""",
}
BROKEN = {
    "no_rate": ("Audio", "str", "Audio needs a rate, as in Audio[16000]"),
    "format_of_input": ('Image["RGB", "PNG"]', "str", "remove 'PNG'"),
    "batched": ("Image", "str", "takes and returns arrays"),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("media")
    for name, source in MODELS.items():
        put(folder / "models" / name / "1" / "model.py", source)
    with serve(folder / "models", folder / "log") as running:
        yield running


def sound(seconds: float = 1.0, rate: int = 44100) -> bytes:
    buffer = io.BytesIO()
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(buffer, np.stack([wave, wave], 1), rate, format="WAV")
    return buffer.getvalue()


def one(data: bytes) -> np.ndarray:
    return np.array([data], object)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_image_goes_in_and_out(media: ServerProcess, protocol: str) -> None:
    module, port = (triton_http, media.http_port) if protocol == "http" else (triton_grpc, media.grpc_port)
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        given = module.InferInput("image", [1], "BYTES")
        given.set_data_from_numpy(one(CAT.read_bytes()))
        answer = client.infer("negative", [given]).as_numpy("output")[0]

    np.testing.assert_array_equal(
        np.asarray(pillow.open(io.BytesIO(answer))), 255 - np.asarray(pillow.open(CAT))
    )


def test_a_pillow_image_goes_in_and_out(media: ServerProcess) -> None:
    with backline.connect(media.url) as client:
        assert client["size"](one(CAT.read_bytes()))["output"][0] == {
            "size": [451, 300],
            "mode": "RGB",
        }


def test_a_sound_is_resampled_mixed_and_goes_out_as_flac(media: ServerProcess) -> None:
    with backline.connect(media.grpc_url) as client:
        answer = client["louder"]({"audio": one(sound())})
    samples, rate = soundfile.read(io.BytesIO(answer["audio"][0]))

    assert (rate, samples.shape) == (8000, (8000,))
    assert answer["audio"][0].startswith(b"fLaC")
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)
    assert answer["seconds"] == 1.0


def test_a_sound_that_is_cut_short_is_logged(media: ServerProcess) -> None:
    with backline.connect(media.url) as client:
        answer = client["louder"]({"audio": one(sound()[:100_000])})

    assert 0.5 < answer["seconds"] < 0.6
    media.wait_for("a sound file is cut short: it has 100000 of 176444 bytes, 0.6 seconds of sound")


def test_a_sound_is_sent_as_base64(media: ServerProcess) -> None:
    body = json.dumps({"audio": {"b64": base64.b64encode(sound()).decode()}, "gain": 1}).encode()
    with urllib.request.urlopen(f"{media.url}/v2/models/length/generate", body, timeout=30) as answer:
        assert json.load(answer)["output"] == 8000


def test_a_stream_of_sounds(media: ServerProcess) -> None:
    with backline.connect(media.grpc_url) as client:
        parts = [
            soundfile.read(io.BytesIO(part["output"][0]))[0] for part in client["halves"].stream(one(sound()))
        ]

    assert [part.shape for part in parts] == [(4000, 2), (4000, 2)]


@pytest.mark.parametrize(
    ("model", "data", "text"),
    [
        ("negative", b"no image", "input 'image': the image cannot be decoded: it is none of PNG"),
        ("louder", b"no sound", "input 'audio': the audio cannot be decoded: it is none of WAV"),
    ],
)
def test_an_undecodable_file_is_the_clients_error(
    media: ServerProcess, model: str, data: bytes, text: str
) -> None:
    with backline.connect(media.url) as client, pytest.raises(BacklineError, match=text) as caught:
        client[model]({next(iter(client[model].metadata().inputs)).name: one(data)})
    assert caught.value.http_status == 400


def test_a_model_sets_its_own_limit(media: ServerProcess) -> None:
    buffer = io.BytesIO()
    pillow.new("L", (1000, 1000)).save(buffer, "PNG")
    with (
        backline.connect(media.url) as client,
        pytest.raises(BacklineError, match="takes 4000000 bytes of memory to decode, more than 2000000"),
    ):
        client["negative"](one(buffer.getvalue()))


def test_an_output_that_is_not_an_image_is_the_models_error(media: ServerProcess) -> None:
    with (
        backline.connect(media.url) as client,
        pytest.raises(BacklineError, match=r"output 'output': an image in RGB has the shape") as caught,
    ):
        client["wrong"](one(CAT.read_bytes()))
    assert caught.value.http_status == 500


def test_the_command_line_takes_a_file(media: ServerProcess) -> None:
    command = [
        sys.executable,
        "-m",
        "backline",
        "infer",
        "size",
        "--input",
        f"image=@{CAT}",
        "--url",
        media.url,
        "--json",
    ]

    assert "451" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_meaningless_hints_fail_the_load(tmp_path: Path) -> None:
    for name, (hint, answer, _) in BROKEN.items():
        limit = "    max_batch_size = 4\n" if name == "batched" else ""
        source = (
            "from backline.model import Audio, Image\n\nclass Model:\n"
            f"{limit}    def predict(self, x: {hint}) -> {answer}: ...\n"
        )
        put(tmp_path / "models" / name / "1" / "model.py", source)
    put(tmp_path / "path" / "soxr" / "__init__.py", "raise ModuleNotFoundError('No module named soxr')")
    put(
        tmp_path / "models" / "library" / "1" / "model.py",
        "from backline.model import Audio\n\ndef f(x: Audio[8000]) -> str: ...\n",
    )
    with serve(
        tmp_path / "models",
        tmp_path / "log",
        ready=False,
        environment={"PYTHONPATH": os.pathsep.join((str(tmp_path / "path"), *sys.path))},
    ) as server:
        server.wait_started()
        with backline.connect(server.url) as client:
            reasons = {model.name: model.reason for model in client.models()}
    for name, (_, _, text) in BROKEN.items():
        assert text in reasons[name], name
    assert "pip install 'backline[audio]'" in reasons["library"]
