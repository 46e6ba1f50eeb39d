"""The handler for image segmentation."""

from __future__ import annotations

from typing import Any

import torch

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed

from .image_classifier import PREPARE
from .vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """A handler that returns an array [height, width, 2] for each image, with the most probable class of each
    pixel and the probability of that class.
    """

    image_processing = PREPARE

    @timed
    def postprocess(self, data: Any) -> Any:
        best = torch.max(torch.softmax(data["out"], dim=1), dim=1)
        return torch.stack([best.indices.to(best.values.dtype), best.values], dim=3).tolist()
