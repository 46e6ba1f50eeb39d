"""The model of requests that name none."""

from __future__ import annotations

from backline.dialects.plugin import DialectContext
from backline_client.values.errors import InvalidArgument, NotFound


def default_model(context: DialectContext, route: str) -> str:
    """Returns the name of the model that runs requests to a `route` without a model's name: the one of
    --default-model or else the server's only model.

    Raises NotFound if there is no model, and InvalidArgument if there are several.
    """
    if context.default_model:
        return context.default_model
    names = context.engine.names()
    if len(names) == 1:
        return names[0]
    if not names:
        raise NotFound(f"{route} runs the server's only model, but the server has no model")
    raise InvalidArgument(
        f"{route} runs the server's only model, but the server has {len(names)} models; name the one to run"
        " with --default-model when starting the server"
    )
