"""The handler for object detection."""

from __future__ import annotations

from typing import Any

from torchvision import transforms

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed
from backline.plugins.runtimes.torchserve.compat.ts.utils.util import map_class_to_label

from .vision_handler import VisionHandler


class ObjectDetector(VisionHandler):
    """A handler that returns a list of {class name: box, "score": score} for each image. Detections with a
    score below `threshold` are left out.
    """

    threshold = 0.5
    image_processing = transforms.Compose([transforms.ToTensor()])

    @timed
    def preprocess(self, data: Any) -> Any:
        """Returns a list with a tensor for each image, rather than a single tensor, because images may differ
        in size.
        """
        return [self._tensor(row.get("data") or row.get("body")).to(self.device) for row in data]

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.inference_mode():
            found = self.model(data, *args, **kwargs)
        # TorchScript detectors return (losses, detections).
        return found[1] if isinstance(found, tuple) else found

    @timed
    def postprocess(self, data: Any) -> Any:
        return [self._objects(row) for row in data]

    def _objects(self, row: Any) -> list[dict[str, Any]]:
        kept = row["scores"] >= self.threshold
        boxes, classes, scores = (row[key][kept].tolist() for key in ("boxes", "labels", "scores"))
        return [
            {**map_class_to_label([[box]], self.mapping, [[number]])[0], "score": score}
            for box, number, score in zip(boxes, classes, scores, strict=True)
        ]
