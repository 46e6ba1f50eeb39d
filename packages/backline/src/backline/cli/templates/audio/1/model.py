import numpy as np

from backline.model import Audio


class Model:
    """Measures a sound: its length, its loudness, and the strongest pitch in its first second."""

    def predict(self, audio: Audio[16000]) -> dict:
        # Any file arrives as float32 [samples] at 16 kHz, with all channels mixed into one.
        if not len(audio):
            return {"seconds": 0.0, "loudness_db": None, "pitch_hz": None}
        loudness = float(np.sqrt(np.mean(audio**2)))
        return {
            "seconds": len(audio) / 16000,
            "loudness_db": round(20 * np.log10(loudness), 1) if loudness else None,
            "pitch_hz": round(self.pitch(audio[:16000]), 1),
        }

    def pitch(self, audio: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
        return float(np.argmax(spectrum[1:]) + 1) * 16000 / len(audio) if len(spectrum) > 1 else 0.0
