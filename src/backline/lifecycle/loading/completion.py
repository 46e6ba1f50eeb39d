"""Configurations that a model completes itself: what `auto_complete_config` of Triton's Python backend adds to a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.protos import message
from backline.repository.configuration.document import Document
from backline.repository.configuration.override import parse
from backline.repository.configuration.reader import to_model_config
from backline.repository.listing import Listing


@dataclass(frozen=True, slots=True)
class Completion:
    """The configuration that a model has given, an inference.ModelConfig; `listing` is the model's folder."""

    given: Any
    listing: Listing

    def apply(self, config: ModelConfig) -> ModelConfig:
        """A file's configuration with what a model may complete. Raises InvalidArgument when that contradicts itself."""
        given, whole = self.given, message("inference.ModelConfig").FromString(config.declared)
        whole.max_batch_size = given.max_batch_size
        for tensors in ("input", "output"):
            whole.ClearField(tensors)
            getattr(whole, tensors).extend(getattr(given, tensors))
        if given.HasField("dynamic_batching") and whole.WhichOneof("scheduling_choice") is None:
            whole.dynamic_batching.SetInParent()
        if given.HasField("model_transaction_policy"):
            whole.model_transaction_policy.CopyFrom(given.model_transaction_policy)
        source = f"auto_complete_config of model '{config.name}'"
        read = to_model_config(Document(source, whole, {"max_batch_size": None}), config.name, self.listing)
        return replace(
            config,
            max_batch_size=read.max_batch_size,
            inputs=read.inputs,
            outputs=read.outputs,
            dynamic_batching=read.dynamic_batching,
            decoupled=read.decoupled,
            joining=read.joining,
            declared=read.declared,
        )


def read_completion(text: str, name: str, listing: Listing) -> Completion:
    """The completion in the JSON `text` that the model `name` has given. Raises InvalidArgument for what is no configuration."""
    try:
        return Completion(parse(text).message, listing)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"auto_complete_config of model '{name}': {error.message.partition(': ')[2]}"
        ) from None
