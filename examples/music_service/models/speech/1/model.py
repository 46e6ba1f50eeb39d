"""Whether a recording is speech or music, by the network `silero_vad`, which detects voices.

The module `speech` is that of the example music_transcription; `model_repository.py` copies it into this
version's folder.
"""

from __future__ import annotations

import speech

from backline.model import Audio, Models


def predict(recording: Audio[speech.SAMPLE_RATE], models: Models) -> dict:
    share = speech.detect(recording, models["silero_vad"]).share
    return {"kind": "speech" if share > 0.5 else "music", "speech": round(share, 3)}
