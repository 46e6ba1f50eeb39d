"""Models that other servers serve: another Backline, Triton, or any server of the Open Inference Protocol."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.engine.config.model_config import ModelConfig
from backline_client.values.errors import InvalidArgument

if TYPE_CHECKING:
    from backline.engine.device import Places
    from backline.lifecycle.loading.loaded import LoadedVersion
    from backline.lifecycle.view.view import View

_KNOWN = ("urls", "model", "version", "max_in_flight", "ca", "api_key_file")
_MAX_IN_FLIGHT = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on other servers: their URLs, separated by commas, and the model's name there.

    At most `max_in_flight` requests are in flight at the same time. `ca` is the PEM file with the certificate
    of the CA that signed the servers' certificates, and `api_key` is the key to send; either may be None.
    """

    urls: str
    model: str
    version: str = ""
    max_in_flight: int = 64
    ca: str | None = None
    api_key: str | None = dataclasses.field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    def serve(self, config: ModelConfig, view: View, placed: Places) -> LoadedVersion:
        """Asks the servers to describe the model; see `loaded_remote`."""
        # Imported late, because this module imports the client.
        from backline.plugins.fleet.loaded import loaded_remote

        return loaded_remote(config, view, self, placed=placed)


class Remote:
    """The backend `remote`. The configuration must name it, because its models have no file."""

    name: ClassVar[str] = "remote"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> RemoteModel:
        """Returns where the model is, based on the parameters. Does not connect to a server.

        Raises InvalidArgument for invalid parameters. Also raises InvalidArgument unless
        `options.may_run_code`: a model from a remote repository or a load request could otherwise make this
        server send requests to any address that it can reach.
        """
        if not options.may_run_code:
            raise InvalidArgument(
                f"model '{config.name}' comes from a remote repository or a load request and names servers to"
                " send requests to: start the server with --trust-remote-code to allow it"
            )
        parameters = Parameters(config, self.name, _KNOWN)
        urls = parameters.text("urls").strip()
        if not urls:
            raise InvalidArgument(
                f"model '{config.name}': the remote backend needs the parameter 'urls', such as"
                " http://a:8000,http://b:8000"
            )
        return RemoteModel(
            urls,
            parameters.text("model").strip() or config.name,
            parameters.text("version").strip(),
            parameters.number("max_in_flight", 64, _MAX_IN_FLIGHT, "a number of requests"),
            parameters.text("ca").strip() or None,
            _key(config, parameters.text("api_key_file").strip()),
            parameters.warnings,
        )


def _key(config: ModelConfig, file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"parameter 'api_key_file' of model '{config.name}': '{file}' cannot be read: {error}"
        ) from None
