"""Sound files decode to arrays at one rate, arrays encode to files, and invalid or oversized files are
refused.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from backline.model import Audio
from backline_client.values.errors import InvalidArgument

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
    with pytest.raises(InvalidArgument, match="the audio has 4 channels, expected 2 or 1"):
        Audio[RATE, 2].decode(written(np.zeros((10, 4))))


def test_a_file_without_samples_decodes_to_an_empty_array() -> None:
    assert Audio[16000].decode(written(np.zeros(0))).shape == (0,)


@pytest.mark.parametrize("data", [b"", b"no sound", b"RIFF\x00\x00\x00\x00WAVE", b"\x89PNG\r\n\x1a\n"])
def test_an_invalid_sound_file_is_refused_with_a_readable_reason(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="the audio cannot be decoded: ") as caught:
        Audio[16000].decode(data)
    assert "object at" not in caught.value.message


def test_a_small_file_that_decodes_to_a_huge_sound_is_refused() -> None:
    silence = written(np.zeros((500_000, 1), np.int16), format="FLAC")

    assert len(silence) < 100_000
    with pytest.raises(
        InvalidArgument, match="the audio has 2000000 bytes when it is decoded, more than 1000000"
    ):
        Audio[RATE].decode(silence, 1_000_000)
    with pytest.raises(
        InvalidArgument, match="the audio has 64000000000 bytes"
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
        (np.full(4, np.nan), "infinite or NaN"),
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


def recorded(
    folder: Path, format: str, codec: str, rate: int = RATE, title: str = "", **options: str
) -> bytes:
    """Half a second of a tone, as FFmpeg writes it."""
    av = pytest.importorskip("av")
    path = folder / "sound"
    with av.open(str(path), "w", format=format, options=options) as container:
        container.metadata["title"] = title
        track = container.add_stream(codec, rate=rate, layout="mono")
        wanted = track.codec_context
        resampler = av.AudioResampler(wanted.format, "mono", rate, wanted.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(tone(rate).reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(track.encode(part))
    return path.read_bytes()


#: As phones, browsers and editors write sound: container, codec, rate, options.
RECORDED = {
    "M4A": ("mp4", "aac", RATE, {}),
    "M4A with its index first": ("mp4", "aac", RATE, {"movflags": "faststart"}),
    "ALAC": ("mp4", "alac", RATE, {}),
    "3GP": ("3gp", "aac", RATE, {}),
    "AAC": ("adts", "aac", RATE, {}),
    "WebM": ("webm", "libopus", 48000, {}),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_recordings_of_phones_and_browsers_are_decoded(kind: str, tmp_path: Path) -> None:
    format, codec, rate, options = RECORDED[kind]

    samples = Audio[16000].decode(recorded(tmp_path, format, codec, rate, **options))

    assert (samples.dtype, samples.ndim) == (np.float32, 1)
    assert len(samples) == pytest.approx(8000, abs=800)
    assert pitch_of(samples, 16000) == pytest.approx(440, abs=4)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


def test_a_recording_whose_title_is_not_utf_8_is_decoded(tmp_path: Path) -> None:
    sound = recorded(tmp_path, "mp4", "aac", title="Caf__")

    assert b"Caf__" in sound
    assert len(Audio[16000].decode(sound.replace(b"Caf__", b"Caf\xe9\xff"))) > 7000


def test_a_recording_that_decodes_to_a_huge_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="bytes when it is decoded, more than 10000"):
        Audio[16000].decode(recorded(tmp_path, "mp4", "aac"), 10_000)


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film"), "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width = track.height = 64
        track.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for part in (frame, None):
            container.mux(track.encode(part))

    with pytest.raises(InvalidArgument, match="the file has no audio track in any of the formats aac, alac"):
        Audio[16000].decode((tmp_path / "film").read_bytes())


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = recorded(tmp_path, "mp4", "aac")
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(InvalidArgument, match=r"M4A needs PyAV .*pip install 'backline\[aac\]'"):
        Audio[16000].decode(sound)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is none of WAV, FLAC, OGG, MP3, AIFF, AU and CAF, and .* M4A, AAC and WebM; it is empty"),
        (b"These are the lyrics of a song\n", "it begins with the text 'These are the lyrics of '"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "it begins with the bytes 89 50 4e 47 0d 0a 1a 0a"),
        (b"\xff\xfb\x90\x00" + bytes(400), "it begins like an MP3 file, but has no complete frame of sound"),
        (b"fLaC" + bytes(60), "The file is damaged or cut short"),
    ],
    ids=["empty", "text", "image", "mp3", "flac"],
)
def test_the_error_says_what_the_file_is(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Audio[16000].decode(data)


@pytest.mark.parametrize("format", ["WAV", "AIFF", "OGG", "MP3", "FLAC"])
def test_a_complete_file_gets_no_warning(format: str, caplog: pytest.LogCaptureFixture) -> None:
    Audio[16000].decode(written(tone(seconds=5), format=format))

    assert not caplog.records


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("WAV", r"it has 220522 of 441044 bytes, 2\.5 seconds of sound"),
        ("AIFF", r"it has 220527 of 441054 bytes, 2\.5 seconds of sound"),
        ("MP3", r"it has [12]\.\d of 5\.0 seconds of sound"),
        ("OGG", r"it has [12]\.\d seconds of sound, and no last page"),
    ],
)
def test_what_is_there_of_a_file_that_is_cut_short_is_decoded_with_a_warning(
    format: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    # noise, as a tone takes so little room that half of a file may end within its first page
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE).astype(np.float32)
    whole = written(noise, format=format)

    with caplog.at_level(logging.WARNING, "backline.model"):
        samples = Audio[16000].decode(whole[: len(whole) // 2])

    assert 16000 < len(samples) < 48000
    (record,) = caplog.records
    assert record.getMessage().startswith("a sound file is cut short: ")
    assert re.search(text, record.getMessage())


def test_a_recording_that_is_cut_short_is_decoded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = recorded(tmp_path, "mp4", "aac", movflags="faststart")

    samples = Audio[16000].decode(whole[: len(whole) // 2])

    assert 1000 < len(samples) < 6000
    assert "of 0.5 seconds of sound" in caplog.text


def test_a_file_that_ends_before_its_first_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"the file is cut short, it has 0\.0 seconds of sound"):
        Audio[16000].decode(written(tone(seconds=3), format="OGG")[:4162])
    with pytest.raises(InvalidArgument, match=r"its index is missing\. The file is damaged"):
        Audio[16000].decode(recorded(tmp_path, "mp4", "aac")[:3000])
