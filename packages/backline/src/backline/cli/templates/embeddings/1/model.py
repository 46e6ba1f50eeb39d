from zlib import crc32

import numpy as np

from backline.model import FP32

SIZE = 64


class Model:
    """Embeds a text: texts that share groups of three letters get similar vectors of length 1."""

    def predict(self, text: str) -> FP32[64]:
        # Replace this with your encoder, loaded in a method `load`.
        vector = np.zeros(SIZE, np.float32)
        padded = f"  {text.lower()} "
        for start in range(len(padded) - 2):
            code = crc32(padded[start : start + 3].encode())
            vector[code % SIZE] += 1 if code & 0x10000 else -1
        return vector / max(float(np.linalg.norm(vector)), 1e-9)
