"""Files that would take too much time or memory, or crash a decoder, cost only their own request."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import struct
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from backline.model import Audio, Image
from backline.model.image import ImageHint
from backline.workers.child.decoder import Decoder
from backline_client.values.errors import InvalidArgument
from support.repositories import put
from support.server import serve

pillow = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
LIMIT = 256 << 20


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    started = Decoder(60.0)
    yield started
    started.close()


def image(width: int, height: int, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    pillow.new("RGB", (width, height), (9, 99, 199)).save(content, format, **options)
    return content.getvalue()


def sound(format: str, seconds: float = 0.5, channels: int = 1, rate: int = 44100) -> bytes:
    content = io.BytesIO()
    wave = np.sin(np.arange(int(rate * seconds)) / 16).astype(np.float32) / 2
    soundfile.write(content, np.repeat(wave[:, None], channels, 1), rate, format=format)
    return content.getvalue()


def recording() -> bytes:
    av = pytest.importorskip("av")
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for part in (frame, None):
            container.mux(track.encode(part))
    return content.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG with the same scan, which is a few bytes long, over and over."""
    content = image(side, side, "JPEG", progressive=True, quality=1)
    at = content.index(bytes.fromhex("ffda00080101000105"))
    end = content.index(b"\xff\xda", at + 2)
    return content[:at] + content[at:end] * scans + content[at:]


def many_samples() -> bytes:
    """An MP4 file whose index says in a few bytes that it has 200 million samples, for each of which FFmpeg
    would keep an entry.
    """
    content = bytearray(recording())
    sizes = content.index(b"stsz")
    content[sizes + 8 : sizes + 16] = struct.pack(">II", 1, 200_000_000)
    chunks = content.index(b"stsc")
    content[chunks + 16 : chunks + 20] = struct.pack(">I", 200_000_000)
    times = content.index(b"stts")
    content[times + 12 : times + 16] = struct.pack(">I", 200_000_000)
    return bytes(content)


def test_a_decoder_returns_what_the_hint_does(decoder: Decoder) -> None:
    photo, song = image(30, 20, "PNG"), sound("FLAC", channels=2)

    for hint, data in (
        (Image["RGB"], photo),
        (Image["L"], photo),
        (Audio[16000], song),
        (Audio[44100, 2], song),
    ):
        np.testing.assert_array_equal(decoder.decode(hint, data, LIMIT), hint.decode(data))
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA"):
        content = io.BytesIO()
        pillow.open(io.BytesIO(photo)).convert(mode).save(content, "PNG")
        hint = ImageHint(as_object=True)
        got, expected = decoder.decode(hint, content.getvalue(), LIMIT), hint.decode(content.getvalue())
        assert (got.mode, got.size, got.getpalette()) == (mode, expected.size, expected.getpalette())
        assert got.tobytes() == expected.tobytes()


def test_an_image_with_very_many_scans_is_refused(decoder: Decoder) -> None:
    with pytest.raises(InvalidArgument, match="it has more than 100 scans"):
        decoder.decode(Image["RGB"], many_scans(2000, 13_000), LIMIT)
    assert decoder.decode(Image["RGB"], many_scans(200, 50), LIMIT).shape == (200, 200, 3)


def test_a_file_that_takes_too_long_fails_alone() -> None:
    decoder = Decoder(0.05)
    slow = image(5000, 5000, "PNG")
    try:
        with pytest.raises(InvalidArgument, match=r"not decoded after 0\.05 s.* decode_timeout_seconds"):
            decoder.decode(Image["RGB"], slow, LIMIT)
        decoder.timeout = 60.0
        assert decoder.decode(Image["RGB"], image(8, 8, "PNG"), LIMIT).shape == (8, 8, 3)
    finally:
        decoder.close()


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: image(6000, 6000, "WEBP", lossless=True), Image["RGB"]),
        (lambda: image(6000, 6000, "JPEG", progressive=True), Image["RGB"]),
        (lambda: image(8000, 8000, "GIF"), ImageHint(as_object=True)),
        (many_samples, Audio[16000]),
    ],
    ids=["WebP", "JPEG", "GIF", "MP4"],
)
def test_a_small_file_that_takes_much_memory_is_refused(
    make: Callable[[], bytes], hint: Any, decoder: Decoder
) -> None:
    data = make()

    assert len(data) < 2_000_000
    with pytest.raises(InvalidArgument, match=r"bytes of memory to decode|cannot be decoded"):
        decoder.decode(hint, data, 64 << 20)
    assert decoder.decode(Audio[44100], sound("WAV"), LIMIT).size == 22050
    peak = next(
        line
        for line in Path(f"/proc/{decoder._process.pid}/status").read_text().splitlines()  # type: ignore[union-attr]
        if line.startswith("VmHWM")
    )
    assert int(peak.split()[1]) < 500_000, "in kB: the libraries, and at most what the limit allows"


def test_a_crash_of_a_decoder_fails_only_its_file(decoder: Decoder) -> None:
    decoder.decode(Image["RGB"], image(8, 8, "PNG"), LIMIT)
    assert decoder._process is not None
    os.kill(decoder._process.pid, signal.SIGSEGV)

    with pytest.raises(InvalidArgument, match=r"the decoder crashed \(exit status -11\)"):
        decoder.decode(Image["RGB"], image(8, 8, "PNG"), LIMIT)
    assert decoder.decode(Image["RGB"], image(8, 8, "PNG"), LIMIT).shape == (8, 8, 3)


def test_a_sampling_rate_that_no_recording_has_is_refused(decoder: Decoder) -> None:
    content = bytearray(sound("WAV"))
    content[24:28] = struct.pack("<I", 2**31 - 1)

    with pytest.raises(InvalidArgument, match="the audio has 2147483647 samples a second, expected 1000 to"):
        decoder.decode(Audio[8000], bytes(content), LIMIT)
    content[24:28] = struct.pack("<I", 1)
    with pytest.raises(InvalidArgument, match="the audio has 1 samples a second, expected 1000 to"):
        decoder.decode(Audio[8], bytes(content), LIMIT)


def test_a_file_cannot_fill_the_log(decoder: Decoder, capfd: pytest.CaptureFixture[str]) -> None:
    tags = b"".join(struct.pack("<HHII", tag, 7, 60_000, 8) for tag in range(300, 5300))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + tags
    photo = image(8, 8, "JPEG")

    fresh = Decoder(60.0)  # whose output goes where the test looks
    try:
        fresh.decode(
            Image["RGB"],
            photo[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + photo[2:],
            LIMIT,
        )
    finally:
        fresh.close()

    assert capfd.readouterr().err == ""


def test_a_compression_without_a_bound_is_refused(decoder: Decoder) -> None:
    with pytest.raises(InvalidArgument, match="its compression lzma is not one of raw, tiff_lzw"):
        decoder.decode(Image["RGB"], image(8, 8, "TIFF", compression="lzma"), LIMIT)


def broken_checksum(data: bytes) -> bytes:
    """Repairs the checksums of a PNG file that was damaged, so that its damage is decoded."""
    repaired, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        size = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        body = data[at + 4 : at + 8 + size]
        repaired += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(repaired)


SPECIMENS: dict[str, tuple[Callable[[], bytes], Any]] = {
    "JPEG": (lambda: image(64, 48, "JPEG"), Image["RGB"]),
    "progressive JPEG": (lambda: image(64, 48, "JPEG", progressive=True), Image["RGB"]),
    "PNG": (lambda: image(64, 48, "PNG"), Image["RGB"]),
    "GIF": (lambda: image(64, 48, "GIF"), Image["RGB"]),
    "WebP": (lambda: image(64, 48, "WEBP"), Image["RGB"]),
    "lossless WebP": (lambda: image(64, 48, "WEBP", lossless=True), Image["RGB"]),
    "BMP": (lambda: image(64, 48, "BMP"), Image["RGB"]),
    "TIFF": (lambda: image(64, 48, "TIFF", compression="tiff_lzw"), Image["RGB"]),
    "WAV": (lambda: sound("WAV"), Audio[16000]),
    "FLAC": (lambda: sound("FLAC"), Audio[16000]),
    "OGG": (lambda: sound("OGG"), Audio[16000]),
    "MP3": (lambda: sound("MP3"), Audio[16000]),
    "AIFF": (lambda: sound("AIFF"), Audio[16000]),
    "M4A": (recording, Audio[16000]),
}


@pytest.mark.parametrize("kind", SPECIMENS)
def test_damaged_files_are_decoded_or_refused(kind: str, decoder: Decoder) -> None:
    make, hint = SPECIMENS[kind]
    whole = make()
    chance = random.Random(kind)
    decoder.decode(hint, whole, LIMIT)
    process = decoder._process
    for number in range(60):
        data = bytearray(whole)
        # The first bytes have the sizes and counts, which do more harm than samples and pixels.
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(min(len(data), chance.choice((64, 300, len(data)))))
            data[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", os.urandom(4))
            )
        if number % 6 == 0:
            del data[chance.randrange(len(data)) :]
        elif number % 6 == 1:
            at = chance.randrange(len(data))
            data[at:at] = data[at : at + chance.randrange(1, 400)] * 50
        damaged = broken_checksum(bytes(data)) if kind == "PNG" else bytes(data)
        with contextlib.suppress(InvalidArgument):
            decoder.decode(hint, damaged, LIMIT)
        assert decoder._process is process, f"decoder crashed: {damaged!r}"


def test_a_model_serves_others_while_files_that_take_long_are_refused(tmp_path: Path) -> None:
    put(
        tmp_path / "models" / "sizes" / "1" / "model.py",
        "from backline.model import Image\n\n\nclass Model:\n    decode_timeout_seconds = 30\n\n"
        "    def predict(self, image: Image) -> int:\n        return len(image)\n",
    )
    with serve(tmp_path / "models", tmp_path / "log") as server:

        def asked(data: bytes) -> Any:
            body = json.dumps({"image": {"b64": b64encode(data).decode()}}).encode()
            try:
                with urllib.request.urlopen(
                    f"{server.url}/v2/models/sizes/generate", body, timeout=60
                ) as answer:
                    return json.load(answer)["output"]
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)["error"]

        assert asked(image(8, 5, "PNG")) == 5
        began = monotonic()
        status, text = asked(many_scans(4000, 13_000))
        assert (status, "more than 100 scans" in text) == (400, True)
        assert monotonic() - began < 10
        assert asked(image(8, 5, "PNG")) == 5
