import time
from pathlib import Path

import numpy as np

from backline.model import BYTES, FP32


class Waiting:
    """Waits until a file exists."""

    def predict(self, path: BYTES[1]) -> FP32[1]:
        gate = Path(path[0].decode())
        gate.with_suffix(".begun").touch()
        while not gate.exists():
            time.sleep(0.005)
        return np.zeros(1, np.float32)
