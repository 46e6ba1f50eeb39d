import numpy as np

from backline.model import FP32, Models


class Batched:
    """Makes one call for all requests of a batch."""

    max_batch_size = 8

    def predict(self, x: FP32[4], models: Models) -> FP32[4]:
        return np.asarray(models["add"](x)["OUT"])
