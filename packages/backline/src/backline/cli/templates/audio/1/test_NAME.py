from pathlib import Path
from runpy import run_path

import numpy as np

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_a_tone_has_its_pitch() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)

    assert Model().predict(tone) == {"seconds": 1.0, "loudness_db": -3.0, "pitch_hz": 440.0}
