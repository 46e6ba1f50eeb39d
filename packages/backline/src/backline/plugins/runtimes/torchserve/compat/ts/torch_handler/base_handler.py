"""The base class of handlers: loads the archive's model, and processes a batch in three steps."""

from __future__ import annotations

import abc
import importlib
import time
from pathlib import Path
from typing import Any

import torch

from backline.plugins.runtimes.torchserve.compat.ts.handler_utils.timer import timed
from backline.plugins.runtimes.torchserve.compat.ts.utils.util import (
    list_classes_from_module,
    load_label_mapping,
)


class BaseHandler(abc.ABC):  # no method is abstract: handlers override what they need
    """A handler whose `initialize` loads the manifest's model, and whose `handle` calls `preprocess`,
    `inference` and `postprocess`.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: dict[str, Any] = {}
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Loads the manifest's `serializedFile`. If the manifest has a `modelFile`, which is a Python module,
        the serialized file holds the weights for the class in this module. Otherwise the file is TorchScript
        (.pt), an exported program (.pt2) or ONNX.

        Raises RuntimeError for any other file or a missing module, and ValueError if the module does not
        define exactly one class.
        """
        properties = context.system_properties
        self.model_yaml_config = context.model_yaml_config or {}
        self.manifest = context.manifest
        on_gpu = torch.cuda.is_available() and properties.get("gpu_id") is not None
        self.map_location = "cuda" if on_gpu else "cpu"
        self.device = torch.device(f"cuda:{properties['gpu_id']}" if on_gpu else "cpu")
        model, folder = self.manifest["model"], Path(properties["model_dir"])
        if "serializedFile" in model:
            self.model_pt_path = str(folder / model["serializedFile"])
        if model.get("modelFile"):
            self.model = self._load_pickled_model(str(folder), model["modelFile"], self.model_pt_path)
            self.model.to(self.device).eval()
        else:
            self.model = self._load_file(self.model_pt_path or "")
        self._compile()
        self.mapping = load_label_mapping(str(folder / "index_to_name.json"))
        self.initialized = True

    def _load_file(self, path: str) -> Any:
        suffix = Path(path).suffix
        if suffix == ".pt":
            return self._load_torchscript_model(path).eval()
        if suffix == ".pt2":
            return torch.export.load(path).module()
        if suffix == ".onnx":
            return importlib.import_module("onnxruntime").InferenceSession(
                path, providers=["CPUExecutionProvider"]
            )
        raise RuntimeError(
            f"no model could be loaded: serializedFile is '{Path(path).name}', expected *.pt, *.pt2 or *.onnx"
        )

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Returns an instance of the module's only class, with weights from a state_dict. The state_dict is
        read with `weights_only`, so that loading it cannot run pickled code.
        """
        if not (Path(model_dir) / model_file).is_file():
            raise RuntimeError(
                f"the archive does not contain its modelFile '{model_file}': add the file with --model-file"
            )
        classes = list_classes_from_module(importlib.import_module(Path(model_file).stem))
        if len(classes) != 1:
            raise ValueError(f"'{model_file}' must define one class, the model; it defines {len(classes)}")
        model = classes[0]()
        if model_pt_path:
            model.load_state_dict(torch.load(model_pt_path, map_location=self.device, weights_only=True))
        return model

    def _compile(self) -> None:
        """Compiles the model if model-config.yaml has `pt2: {compile: {enable: true, ...}}`. The keys other
        than `enable` are passed to torch.compile as arguments.
        """
        settings = self.model_yaml_config.get("pt2")
        options = dict(settings.get("compile") or {}) if isinstance(settings, dict) else {}
        if options.pop("enable", False):
            self.model = torch.compile(self.model, **options)

    @timed
    def preprocess(self, data: Any) -> Any:
        """Converts the rows of a batch to the model's input."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """Turns the model's output into a list with one result per row."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Returns the results of a batch. If the batch's first request has the header `explain` or `describe`
        with the value "True", returns the result of explain_handle or describe_handle instead.
        """
        began = time.perf_counter()
        self.context = context
        if self._asks("describe"):
            output = [self.describe_handle()]
        else:
            prepared = self.preprocess(data)
            if self._asks("explain"):
                self.explain = True
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - began) * 1000, 2))
        return output

    def _asks(self, header: str) -> bool:
        return bool(self.context.request_processor) and self.context.get_request_header(0, header) == "True"

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Explains a prediction with the subclass's method `get_insights`, which gets the prepared data, the
        raw data and the index of the class to explain.
        """
        row = raw_data[0]
        target = (row.get("target") if isinstance(row, dict) else None) or 0
        return self.get_insights(data_preprocess, row.get("data") if isinstance(row, dict) else row, target)

    def get_insights(self, tensor_data: Any, raw_data: Any, target: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no get_insights, which explanations need")

    def describe_handle(self) -> Any:
        """Describes the model; subclasses override this."""
        return None

    def get_device(self) -> Any:
        return self.device
