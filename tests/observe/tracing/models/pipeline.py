import asyncio

import numpy as np

from backline.model import FP32, Models


class Pipeline:
    """Two concurrent calls, and a third with their results."""

    async def predict(self, x: FP32[1, 4], models: Models) -> FP32[1, 4]:
        add = models["add"]
        first, second = await asyncio.gather(add(x), add(x + 1))
        joined = await add(first["OUT"] + second["OUT"])
        return np.asarray(joined["OUT"])
