import numpy as np

from backline.model import FP32


class Model:
    """A linear layer. Waiting requests run as one batch: `x` and the result have at most 32 rows."""

    max_batch_size = 32

    def load(self) -> None:
        self.weights = np.linspace(-1, 1, 4, dtype=np.float32)

    def predict(self, x: FP32[4]) -> FP32[1]:
        return (x @ self.weights)[:, np.newaxis]
