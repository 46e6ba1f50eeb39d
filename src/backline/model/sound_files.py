"""Decodes sound files of all supported formats, and detects truncated files."""

from __future__ import annotations

import io
import logging
from typing import Any, Final

import numpy as np

from backline.engine.errors import Internal, InvalidArgument
from backline.model.hints import library

log = logging.getLogger("backline.model")

_FORMATS: Final = "WAV, FLAC, OGG, MP3, AIFF and other formats of libsndfile, and with PyAV M4A, AAC and WebM"
#: FFmpeg may run only these decoders: the contents of a file, which are not trusted, determine the decoder.
#: Video is never decoded.
_CODECS: Final = ("aac", "alac", "flac", "mp3float", "mp3", "opus", "libopus", "vorbis", "libvorbis")
_ITEM: Final = np.dtype(np.float32).itemsize
#: The length in the header of an MP3 file may be wrong by up to this many samples: two MP3 frames.
_MP3_TOLERANCE: Final = 2 * 1152
#: A program that writes a sound file to a pipe does not know the size in advance, so it writes this number or
#: a larger number as the size into the header.
_UNKNOWN_SIZE: Final = 0x7F000000


def read_sound(
    data: bytes, limit: int, rate_wanted: int = 0, channels_wanted: int = 0
) -> tuple[np.ndarray, int]:
    """Decodes a sound file. Returns an FP32 array [samples, channels] and the sampling rate.

    If the file is truncated, decodes the part that is present, and logs a warning. Raises InvalidArgument if
    nothing can be decoded, or if the decoded sound has more than `limit` bytes, either with its own rate and
    channels, or with the wanted rate and number of channels.
    """
    container = _container(data)
    if container:
        samples, rate, short = _read_container(data, container, limit)
    else:
        samples, rate, short = _read_file(data, limit, rate_wanted, channels_wanted)
    check_size(len(samples) * rate_wanted // rate * channels_wanted * _ITEM, limit)
    if short:
        if not len(samples):
            raise InvalidArgument(f"the audio cannot be decoded: the file is cut short, {short}")
        log.warning("a sound file is cut short: %s", short)
    return samples, rate


def check_size(size: int, limit: int) -> None:
    """Raises InvalidArgument if a decoded sound of `size` bytes is larger than `limit`."""
    if size > limit:
        raise InvalidArgument(
            f"the audio has {size} bytes when it is decoded, more than {limit}: send a shorter recording, or"
            " raise the model's decoded_limit_bytes"
        )


# Reading with libsndfile


def _read_file(
    data: bytes, limit: int, rate_wanted: int, channels_wanted: int
) -> tuple[np.ndarray, int, str]:
    """Returns the samples, the rate, and what is missing if the file is truncated; "" if it is complete."""
    soundfile = library("soundfile", "audio", "soundfile", "audio")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = file.samplerate, file.frames
            check_size(frames * file.channels * _ITEM, limit)
            check_size(frames * rate_wanted // rate * channels_wanted * _ITEM, limit)
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"the audio cannot be decoded: {_reason(error, data)}") from None
    return samples, rate, _missing(data, len(samples), frames, rate)


def _missing(data: bytes, got: int, announced: int, rate: int) -> str:
    """Returns a text that says how much of a truncated file is present; empty if the file is complete."""
    seconds = f"{got / rate:.1f} seconds of sound"
    if data[:4] in {b"RIFF", b"FORM"}:
        size = 8 + int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big")
        if len(data) < size < _UNKNOWN_SIZE:
            return f"it has {len(data)} of {size} bytes, {seconds}"
    elif data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        # RFC 3533, section 6: the flag 4 marks the last page of a stream.
        if last + 5 >= len(data) or not data[last + 5] & 4:
            return f"it has {seconds}, and no last page"
    elif got < announced - _MP3_TOLERANCE:
        return f"it has {got / rate:.1f} of {announced / rate:.1f} seconds of sound"
    return ""


def _reason(error: Exception, data: bytes) -> str:
    """Returns why libsndfile cannot read a file."""
    text = str(error).rpartition("': ")[2].rpartition(">: ")[2] or str(error)
    if "not recognised" in text:
        return f"it is none of {_FORMATS}; {_start(data)}"
    if "pipe" in text:  # part of libsndfile's message if mpg123 finds no frame
        return "it begins like an MP3 file, but has no complete frame of sound"
    return f"{text.removeprefix('Error : ').rstrip('.')}. The file is damaged or cut short"


def _start(data: bytes) -> str:
    if not data:
        return "it is empty"
    start = data[:24]
    text = start.decode("ascii", "replace")
    if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable() and text.isascii():
        return f"it begins with the text {text!r}"
    return f"it begins with the bytes {start[:12].hex(' ')}"


# Reading with FFmpeg


def _container(data: bytes) -> str:
    """Returns FFmpeg's name for the file's format if libsndfile cannot read that format; otherwise an empty
    string.
    """
    if data[4:8] == b"ftyp":  # ISO/IEC 14496-12: M4A, MP4, 3GP
        return "mp4"
    if data[:4] == b"\x1a\x45\xdf\xa3":  # EBML: WebM, Matroska
        return "matroska"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ISO/IEC 13818-7: ADTS, not MP3
        return "aac"
    return ""


def _read_container(data: bytes, format: str, limit: int) -> tuple[np.ndarray, int, str]:
    """Returns the samples, the rate, and what is missing if the file is truncated; "" if it is complete."""
    name = {"mp4": "M4A", "matroska": "WebM"}.get(format, "AAC")
    try:
        av = library("av", name, "PyAV", "aac")
    except Internal as missing:
        raise InvalidArgument(f"the audio cannot be decoded: {missing.message}") from None
    # A file must not be able to make FFmpeg open other files, or run decoders that sound does not need.
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(_CODECS)}
    try:
        with av.open(io.BytesIO(data), format=format, options=options, metadata_errors="ignore") as container:
            track = next(iter(container.streams.audio), None)
            if track is None or track.codec_context.name not in _CODECS:
                raise InvalidArgument(
                    "the audio cannot be decoded: the file has no audio track in any of the formats"
                    f" {', '.join(_CODECS)}"
                )
            # An AAC file without a container only has an estimated length.
            known = format != "aac" and track.duration is not None
            announced = float(track.duration * track.time_base) if known else 0.0
            return _decoded(av, container, track, announced, limit)
    except (av.FFmpegError, ValueError, LookupError, OverflowError) as error:
        reason = "its index is missing" if format == "mp4" and b"moov" not in data else _short(error)
        raise InvalidArgument(
            f"the audio cannot be decoded: {reason}. The file is damaged or cut short"
        ) from None


def _decoded(
    av: Any, container: Any, track: Any, announced: float, limit: int
) -> tuple[np.ndarray, int, str]:
    parts: list[np.ndarray] = []
    resampler: Any = None
    rate = size = 0
    broken = ""
    try:
        for frame in container.decode(track):
            if resampler is None:
                rate = frame.sample_rate
                check_size(int(announced * rate) * frame.layout.nb_channels * _ITEM, limit)
                # Converts only the sample format: planar floats, one row for each channel.
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray())
                size += parts[-1].nbytes
            check_size(size, limit)
    except av.FFmpegError as error:
        broken = _short(error)
        if resampler is None:
            raise
    if resampler is None:
        raise ValueError("it has no sound")
    samples = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    seconds = len(samples) / rate
    if seconds < announced - 0.1:
        return samples, rate, f"it has {seconds:.1f} of {announced:.1f} seconds of sound"
    return samples, rate, f"it has {seconds:.1f} seconds of sound, then: {broken}" if broken else ""


def _short(error: Exception) -> str:
    """Returns the text of an FFmpeg error, without the error number and the file name."""
    return getattr(error, "strerror", None) or str(error)
