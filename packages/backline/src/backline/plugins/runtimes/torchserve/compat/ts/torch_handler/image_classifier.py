"""The handler for image classification."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import transforms

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed
from backline.plugins.runtimes.torchserve.compat.ts.utils.util import map_class_to_label

from .vision_handler import VisionHandler

NORMALIZE = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
#: Resizes and crops an image, and normalises its channels by ImageNet's means and standard deviations.
PREPARE = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE]
)


class ImageClassifier(VisionHandler):
    """A handler that returns the `topk` most probable classes of each image, as {name: probability}."""

    topk = 5
    image_processing = PREPARE

    def set_max_result_classes(self, topk: int) -> None:
        self.topk = topk

    def get_max_result_classes(self) -> int:
        return self.topk

    @timed
    def postprocess(self, data: Any) -> Any:
        probabilities, classes = torch.topk(torch.softmax(data, dim=1), min(self.topk, data.shape[1]), dim=1)
        return map_class_to_label(probabilities.tolist(), self.mapping, classes.tolist())
