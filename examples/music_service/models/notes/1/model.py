"""The notes of a recording. The model cuts it into windows, sends them to `basic_pitch`, and decodes the
outputs.

The modules `windows` and `notes` are those of the example music_transcription; `model_repository.py` copies
them into this version's folder.
"""

from __future__ import annotations

import asyncio

import notes
import windows

from backline.model import Audio, Models

_INPUT = "serving_default_input_2:0"
_SOUNDING = "StatefulPartitionedCall:1"
_ONSET = "StatefulPartitionedCall:2"
#: The number of windows of one recording that are in flight at once. The network batches those of all
#: recordings.
_IN_FLIGHT = 8


async def predict(recording: Audio[windows.SAMPLE_RATE], models: Models) -> list:
    places = asyncio.Semaphore(_IN_FLIGHT)

    async def hear(window):
        async with places:
            heard = await models["basic_pitch"]({_INPUT: window}, outputs=(_SOUNDING, _ONSET))
            return heard[_SOUNDING], heard[_ONSET]

    heard = await asyncio.gather(*map(hear, windows.cut(recording)))
    sounding, onset = (windows.join(parts, len(recording)) for parts in zip(*heard, strict=True))
    return [
        {"note": note.name, "midi": note.midi, "start": round(note.start, 3), "end": round(note.end, 3)}
        for note in notes.decode(sounding, onset, windows.FRAME_RATE)
    ]
