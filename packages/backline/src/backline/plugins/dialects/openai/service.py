"""The routes of OpenAI's API: models and embeddings."""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.bodies.json_text import check_size
from backline.dialects.exchange import HTTP, UnaryInference, deadline_of
from backline.dialects.off_loop import OffLoop
from backline.dialects.plugin import Dialect
from backline.dialects.router import Part, Router
from backline.plugins.dialects.openai.embeddings import EmbeddingReader, write_embeddings
from backline.plugins.dialects.openai.errors import InvalidParameter, NoModel, error_form, unreadable
from backline.wire.application import Buffer, HttpRequest
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument, NotFound

_DECOUPLED: Final = "the model sends any number of responses, so it cannot serve embeddings"


@decodable
class _Named(Struct):
    model: str = ""


_decode = msgspec.json.Decoder(_Named).decode


def _named(body: Buffer) -> str:
    """Returns the name of the model in a request. Raises PayloadTooLarge or InvalidArgument if there is none.
    The body is read on the event loop, which takes at most 15 ms, because its size is limited.
    """
    check_size("the request", body)
    try:
        name: str = _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable(error) from None
    if not name:
        raise InvalidParameter("you must provide a model parameter", "model")
    return name


def _model_of(body: Buffer) -> str:
    try:
        return _named(body)
    except InvalidArgument:
        return ""  # the handler says what is wrong


class OpenAI(Dialect):
    """OpenAI's models and embeddings."""

    def add_routes(self, router: Router) -> None:
        engine = self.context.engine
        router.join(Scope.READ, "/v1/models", self._models, lists=True)
        router.join(Scope.READ, "/v1/models/{}", self._model)
        self._take = UnaryInference(
            engine,
            replace(HTTP, forward=self.context.forwarding.http),
            EmbeddingReader(engine).read,
            write_embeddings,
            OffLoop(),
            decoupled=_DECOUPLED,
        ).take
        router.add(Scope.INFER, "POST", "/v1/embeddings", self._embed, errors=error_form, model_of=_model_of)

    def _models(self, request: HttpRequest) -> Part:
        identity = request.identity
        names = self.context.engine.names()
        if identity is not None:
            names = [name for name in names if identity.may(Scope.READ, name)]
        return 200, {"object": "list", "data": [_described(name) for name in names]}

    def _model(self, name: str, _: HttpRequest) -> Part:
        if not self.context.engine.is_known(name):
            raise NoModel(name)
        return 200, _described(name)

    def _embed(self, request: HttpRequest) -> None:
        name = _named(request.body)
        deadline = deadline_of(request.headers)
        again = partial(self._take, request, request.body, request.headers, name, "", deadline)
        try:
            self.context.deferred.when_known(name, "", request, again)
        except NotFound:
            if self.context.engine.is_known(name):
                raise  # the error says why no version of it is served
            raise NoModel(name) from None


def _described(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "backline"}
