"""The base class of image handlers."""

from __future__ import annotations

import abc
import base64
import io
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from PIL import Image

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed

from .base_handler import BaseHandler


class VisionHandler(BaseHandler, abc.ABC):
    """A handler that accepts image files, which may be in base64, and nested lists. `image_processing`
    converts images to tensors.
    """

    image_processing: ClassVar[Callable[[Any], Any]]

    @timed
    def preprocess(self, data: Any) -> Any:
        return torch.stack([self._tensor(row.get("data") or row.get("body")) for row in data]).to(self.device)

    def _tensor(self, image: Any) -> Any:
        if isinstance(image, str):
            image = base64.b64decode(image)
        if isinstance(image, (bytes, bytearray)):
            return type(self).image_processing(Image.open(io.BytesIO(image)).convert("RGB"))
        return torch.tensor(image, dtype=torch.float32)
