"""Sound files decode to arrays at one rate, arrays encode to files, and invalid or oversized files are
refused.
"""

from __future__ import annotations

import io

import numpy as np
import pytest

from backline.engine.errors import InvalidArgument
from backline.model import Audio

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE = 44100


def tone(rate: int = RATE, seconds: float = 0.5, pitch: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32) * 0.5


def written(samples: np.ndarray, rate: int = RATE, format: str = "WAV", **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, **options)
    return buffer.getvalue()


def pitch_of(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_each_format_is_decoded_at_the_rate_of_the_hint(format: str) -> None:
    samples = Audio[16000].decode(written(tone(), format=format))

    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(8000, abs=800)
    assert pitch_of(samples, 16000) == pytest.approx(440, abs=4)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def test_the_same_rate_is_exact() -> None:
    np.testing.assert_array_equal(Audio[RATE].decode(written(tone(), subtype="FLOAT")), tone())


def test_channels_are_mixed_to_one() -> None:
    both = np.stack([tone(), np.zeros_like(tone())], 1)

    np.testing.assert_allclose(Audio[RATE].decode(written(both, subtype="FLOAT")), tone() / 2, atol=1e-7)


def test_one_channel_is_repeated() -> None:
    samples = Audio[RATE, 2].decode(written(tone(), subtype="FLOAT"))

    np.testing.assert_array_equal(samples, np.stack([tone(), tone()]))


def test_channels_come_first() -> None:
    both = np.stack([tone(), tone(pitch=880)], 1)

    np.testing.assert_array_equal(Audio[RATE, 2].decode(written(both, subtype="FLOAT")), both.T)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="the sound has 4 channels, expected 2 or 1"):
        Audio[RATE, 2].decode(written(np.zeros((10, 4))))


def test_a_file_without_samples_decodes_to_an_empty_array() -> None:
    assert Audio[16000].decode(written(np.zeros(0))).shape == (0,)


@pytest.mark.parametrize("data", [b"", b"no sound", b"RIFF\x00\x00\x00\x00WAVE", b"\x89PNG\r\n\x1a\n"])
def test_an_invalid_sound_file_is_refused_with_a_readable_reason(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="the sound cannot be decoded: ") as caught:
        Audio[16000].decode(data)
    assert "object at" not in caught.value.message


def test_a_small_file_that_decodes_to_a_huge_sound_is_refused() -> None:
    silence = written(np.zeros((500_000, 1), np.int16), format="FLAC")

    assert len(silence) < 100_000
    with pytest.raises(
        InvalidArgument, match="the sound has 2000000 bytes when it is decoded, more than 1000000"
    ):
        Audio[RATE].decode(silence, 1_000_000)
    with pytest.raises(
        InvalidArgument, match="the sound has 64000000000 bytes"
    ):  # 500,000 s at one sample a second, resampled
        Audio[32000].decode(written(np.zeros(500_000), 1))


@pytest.mark.parametrize(
    ("hint", "start"),
    [(Audio[RATE], b"RIFF"), (Audio[RATE, 1, "FLAC"], b"fLaC"), (Audio[RATE, 1, "OGG"], b"OggS")],
)
def test_an_array_is_encoded_as_a_file(hint, start: bytes) -> None:
    encoded = hint.encode(tone())

    assert encoded.startswith(start)
    np.testing.assert_allclose(hint.decode(encoded), tone(), atol=0.05 if start == b"OggS" else 1e-4)


def test_two_channels_survive_a_round_trip() -> None:
    both = np.stack([tone(), tone(pitch=880)])

    np.testing.assert_allclose(Audio[RATE, 2].decode(Audio[RATE, 2].encode(both)), both, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros(4, np.int16), "an array of floats from -1 to 1, got int16"),
        (np.zeros((2, 4)), r"the shape \[samples\], got \[2, 4\]"),
        (np.full(4, np.nan), "infinity or NaN"),
    ],
)
def test_an_array_that_is_not_a_sound_is_not_encoded(value: np.ndarray, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        Audio[RATE].encode(value)


@pytest.mark.parametrize("given", [0, "16000", (16000, 0), (16000, 1, "MP4"), (1, 1, "WAV", 1)])
def test_a_meaningless_hint_is_an_error(given: object) -> None:
    with pytest.raises(
        TypeError,
        match="optionally the number of channels and the file format of an output, one of WAV, FLAC, OGG",
    ):
        Audio[given]
