"""Decodes sound files of all supported formats, and detects truncated files."""

from __future__ import annotations

import io
import logging
from typing import Any, Final

import numpy as np

from backline.model.hints import library
from backline_client.values.errors import Internal, InvalidArgument

log = logging.getLogger("backline.model")

_FORMATS: Final = "WAV, FLAC, OGG, MP3, AIFF, AU and CAF, and with PyAV M4A, AAC and WebM"
#: FFmpeg may run only these decoders: the contents of a file, which are not trusted, determine the decoder.
#: Video is never decoded.
_CODECS: Final = ("aac", "alac", "flac", "mp3float", "mp3", "opus", "libopus", "vorbis", "libvorbis")
_ITEM: Final = np.dtype(np.float32).itemsize
#: The samples, of all channels, that are decoded at a time.
_BLOCK: Final = 1 << 20
#: The sampling rates in Hz. Conversion from a much higher one takes seconds for a single sample, and from a
#: much lower one a few bytes become seconds of work.
_LOWEST_RATE: Final = 1000
_HIGHEST_RATE: Final = 1_000_000
#: The length in the header of an MP3 file may be wrong by up to this many samples: two MP3 frames.
_MP3_TOLERANCE: Final = 2 * 1152
#: A program that writes a sound file to a pipe does not know the size in advance, so it writes this number or
#: a larger number as the size into the header.
_UNKNOWN_SIZE: Final = 0x7F000000


def read_sound(
    data: bytes, limit: int, rate_wanted: int = 0, channels_wanted: int = 0
) -> tuple[np.ndarray, int]:
    """Decodes a sound file. Returns an FP32 array [samples, channels] and the sampling rate. Both are the
    wanted ones if they are given, otherwise those of the file.

    If the file is truncated, decodes the part that is present, and logs a warning. Raises InvalidArgument if
    nothing can be decoded, or if the decoded sound has more than `limit` bytes.
    """
    sound = _Sound(rate_wanted, channels_wanted, limit)
    container = _container(data)
    short = _read_container(data, container, sound) if container else _read_file(data, sound)
    if short:
        if not sound.decoded:
            raise InvalidArgument(f"the audio cannot be decoded: the file is cut short, {short}")
        log.warning("a sound file is cut short: %s", short)
    return sound.samples(), sound.rate


class _Sound:
    """A sound that is decoded in blocks. Each block is converted to the wanted rate and number of channels
    at once, so that there is no second copy of the whole sound.
    """

    def __init__(self, rate: int, channels: int, limit: int) -> None:
        self.rate = rate
        self._channels = channels
        self._limit = limit
        self._resampler: Any = None
        self._samples = bytearray()
        #: The number of samples that are decoded, and the sampling rate of the file.
        self.decoded = 0
        self.rate_found = 0

    def begin(self, rate: int, channels: int, announced: int) -> None:
        """Takes what the file's header says. Raises InvalidArgument for a rate or number of channels that
        cannot be converted, and for a sound that is too large.
        """
        self.rate_found = rate
        self.rate = self.rate or rate
        self._channels = self._channels or channels
        self._check_size(announced * self.rate // max(rate, 1) * self._channels * _ITEM)
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
            raise InvalidArgument(
                f"the audio has {rate} samples a second, expected {_LOWEST_RATE} to {_HIGHEST_RATE}; resample"
                " it"
            )
        if channels != self._channels and 1 not in (channels, self._channels):
            raise InvalidArgument(f"the audio has {channels} channels, expected {self._channels} or 1")
        if rate != self.rate:
            soxr = library("soxr", "audio", "soxr", "audio")
            # One channel that is to be copied is resampled once.
            self._resampled = min(channels, self._channels)
            self._resampler = soxr.ResampleStream(rate, self.rate, self._resampled)

    def add(self, block: np.ndarray, *, last: bool = False) -> None:
        """Takes samples, FP32 [samples, channels]. Raises InvalidArgument if the sound is now too large."""
        self.decoded += len(block)
        if block.shape[1] > self._channels:  # many channels are mixed into one
            block = block.mean(axis=1, keepdims=True, dtype=np.float32)
        if self._resampler is not None:
            block = self._resampler.resample_chunk(np.ascontiguousarray(block), last=last)
        if block.shape[1] < self._channels:
            block = np.repeat(block, self._channels, axis=1)
        self._samples += np.ascontiguousarray(block).data.cast("B") if block.size else b""
        self._check_size(len(self._samples))

    def samples(self) -> np.ndarray:
        if self._resampler is not None and self.decoded:
            self.add(np.zeros((0, self._resampled), np.float32), last=True)
        return np.frombuffer(self._samples, np.float32).reshape(-1, self._channels)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise InvalidArgument(
                f"the audio has {size} bytes when it is decoded, more than {self._limit}: send a shorter"
                " recording, or raise the model's decoded_limit_bytes"
            )


# Reading with libsndfile


def _read_file(data: bytes, sound: _Sound) -> str:
    """Decodes a file into `sound`. Returns what is missing if the file is truncated; "" if it is complete."""
    if not _known(data):
        raise InvalidArgument(f"the audio cannot be decoded: it is none of {_FORMATS}; {_start(data)}")
    soundfile = library("soundfile", "audio", "soundfile", "audio")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            announced = file.frames
            sound.begin(file.samplerate, file.channels, announced)
            while len(block := file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)):
                sound.add(block)
    except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"the audio cannot be decoded: {_reason(error, data)}") from None
    return _missing(data, sound.decoded, announced, sound.rate_found)


def _known(data: bytes) -> bool:
    """Returns whether a file has one of the formats that are decoded with libsndfile, which knows more."""
    start, kind = data[:4], data[8:12]
    return (
        (start in {b"RIFF", b"RIFX", b"RF64"} and kind == b"WAVE")
        or (start == b"FORM" and kind in {b"AIFF", b"AIFC"})
        or start in {b"fLaC", b"OggS", b".snd", b"caff"}
        or data[:3] == b"ID3"
        or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)
    )


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


def _read_container(data: bytes, format: str, sound: _Sound) -> str:
    """Decodes a file into `sound`. Returns what is missing if the file is truncated; "" if it is complete."""
    name = {"mp4": "M4A", "matroska": "WebM"}.get(format, "AAC")
    try:
        av = library("av", name, "PyAV", "aac")
    except Internal as missing:
        raise InvalidArgument(f"the audio cannot be decoded: {missing.message}") from None
    # A file must not be able to make FFmpeg open other files, or run decoders that sound does not need.
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(_CODECS)}
    # From version 19, PyAV accepts titles and names in any encoding, and has no option for it.
    lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(io.BytesIO(data), format=format, options=options, **lenient) as container:
            track = next(iter(container.streams.audio), None)
            if track is None or track.codec_context.name not in _CODECS:
                raise InvalidArgument(
                    "the audio cannot be decoded: the file has no audio track in any of the formats"
                    f" {', '.join(_CODECS)}"
                )
            # An AAC file without a container only has an estimated length.
            known = format != "aac" and track.duration is not None
            announced = float(track.duration * track.time_base) if known else 0.0
            return _decoded(av, container, track, announced, sound)
    except MemoryError:  # PyAV's is an FFmpegError too
        raise
    except (av.FFmpegError, ValueError, LookupError, OverflowError) as error:
        reason = "its index is missing" if format == "mp4" and b"moov" not in data else _short(error)
        raise InvalidArgument(
            f"the audio cannot be decoded: {reason}. The file is damaged or cut short"
        ) from None


def _decoded(av: Any, container: Any, track: Any, announced: float, sound: _Sound) -> str:
    resampler: Any = None
    broken = ""
    try:
        for frame in container.decode(track):
            if resampler is None:
                rate = frame.sample_rate
                sound.begin(rate, frame.layout.nb_channels, int(announced * rate))
                # Converts only the sample format: planar floats, one row for each channel.
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            for part in resampler.resample(frame):
                sound.add(part.to_ndarray().T)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        broken = _short(error)
        if resampler is None:
            raise
    if resampler is None:
        raise ValueError("it has no sound")
    seconds = sound.decoded / sound.rate_found
    if seconds < announced - 0.1:
        return f"it has {seconds:.1f} of {announced:.1f} seconds of sound"
    return f"it has {seconds:.1f} seconds of sound, then: {broken}" if broken else ""


def _short(error: Exception) -> str:
    """Returns the text of an FFmpeg error, without the error number and the file name."""
    return getattr(error, "strerror", None) or str(error)
