"""Reads the configuration in a load request, which is JSON and replaces the configuration file of the
model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig
from backline.engine.document_limits import check_size
from backline.repository.configuration.checks import check_complete
from backline.repository.configuration.document import Document
from backline.repository.configuration.reader import to_model_config
from backline.repository.listing import Listing
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

SOURCE = "load parameter 'config'"
#: The beginning of Triton's error message for a configuration that cannot be read.
_UNREADABLE = "Invalid config override"


#: Parameters whose values name files or programs on the server's machine, for every backend.
_NAMING_PLACES = frozenset({"execution_env_path", "cache_dir"})
_REMOTE = "remote"
#: Parameters of the backend `remote` that say where requests are sent, and which file on the server's machine
#: contains the key that is sent with them.
_NAMING_SERVERS = frozenset({"urls", "model", "version", "ca", "api_key_file"})
#: Options of execution accelerators whose values are numbers or fixed choices. The values of other options
#: may be files, libraries to load (trt_extra_plugin_lib_paths), or addresses in the server's memory
#: (user_compute_stream).
_HARMLESS_OPTIONS = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "device_type",
        "do_copy_in_default_stream",
        "gpu_mem_limit",
        "max_cached_engines",
        "max_workspace_size_bytes",
        "minimum_segment_size",
        "num_of_threads",
        "num_streams",
        "precision",
        "precision_mode",
        "trt_builder_optimization_level",
        "trt_engine_cache_enable",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_max_partition_iterations",
        "trt_max_workspace_size",
        "trt_min_subgraph_size",
        "use_tf32",
    }
)


def read_override(
    text: str,
    name: str,
    listing: Listing,
    *,
    complete: bool = False,
    own: bytes = b"",
    may_name_servers: bool = False,
) -> ModelConfig:
    """Returns the configuration in the JSON `text` of a request to load the model `name` from the folder
    `listing`.

    A `complete` configuration must name the inputs and outputs. `own` is the configuration that the model's
    files declare (ModelConfig.declared). With `may_name_servers`, the request may say on which servers remote
    models run.

    Raises InvalidArgument, with the path of the field, if the configuration is not valid, contradicts itself,
    or names files on the server's machine, or other servers, that `own` does not name.
    """
    document = parse(text)
    if complete:
        check_complete(document, name)
    _check_places(document, own)
    if not may_name_servers:
        _check_servers(document, own)
    return to_model_config(document, name, listing)


def _check_places(document: Document, own: bytes) -> None:
    """Raises InvalidArgument if a request names files or programs for the server to read, write or run.

    Only the model's own files may name files or programs. A request may repeat the values in the model's
    files, so that a client can change a configuration that it received and send it back.
    """
    reason = (
        "may name a file, program or address on the server, and cannot be set by a load request; set it in"
        " the model's own configuration"
    )
    _refuse_changes(document, own, _places, reason)


def _check_servers(document: Document, own: bytes) -> None:
    """Raises InvalidArgument if a request says where a remote model runs.

    Otherwise a client could make the server send requests to any address that the server can reach, with the
    contents of any file as the key. A request may repeat the values in the model's own files.
    """
    reason = (
        "says where a remote model runs and cannot be set by a load request; set it in the model's own"
        " configuration, or start the server with --trust-remote-code"
    )
    _refuse_changes(document, own, _servers, reason)


def _refuse_changes(
    document: Document, own: bytes, find: Callable[[Any], Mapping[str, str]], reason: str
) -> None:
    """Raises InvalidArgument if `find` finds a value in the document that the model's own files do not have
    at the same path.
    """
    allowed = find(document.message.FromString(own))
    for path, value in find(document.message).items():
        if allowed.get(path) != value:
            raise document.error(f"{path} {reason}", path)


def _servers(message: Any) -> dict[str, str]:
    """Returns the parameters that say where a remote model runs, keyed by the paths of their fields."""
    if _REMOTE not in (message.backend, message.platform):
        return {}
    return {
        f"parameters[{key}]": value.string_value
        for key, value in message.parameters.items()
        if key in _NAMING_SERVERS
    }


def _places(message: Any) -> dict[str, str]:
    """Returns the values that name files, programs or memory addresses on the server, keyed by the paths of
    their fields.
    """
    found = {
        f"parameters[{key}]": value.string_value
        for key, value in message.parameters.items()
        if key.lower() in _NAMING_PLACES
    }
    accelerators = message.optimization.execution_accelerators
    for kind in ("gpu_execution_accelerator", "cpu_execution_accelerator"):
        for one in getattr(accelerators, kind):
            found |= {
                f"optimization.execution_accelerators.{kind}[{one.name}].parameters[{key}]": value
                for key, value in one.parameters.items()
                if key.lower() not in _HARMLESS_OPTIONS
            }
    return found


def parse(text: str) -> Document:
    """Returns the document in a JSON text. Raises InvalidArgument if the text is not a valid
    configuration.
    """
    check_size(text, _UNREADABLE)
    try:
        table = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"{_UNREADABLE}:{error.lineno}:{error.colno}: the text is not JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise InvalidArgument(f"{_UNREADABLE}: the document is nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):  # an escape that may be only half of a surrogate pair
        try:
            json.dumps(table, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"{_UNREADABLE}: the text has an escape such as \\ud800, which is not a character"
            ) from None
    if not isinstance(table, dict):
        raise InvalidArgument(
            f"{_UNREADABLE}: expected an object with the fields of a model configuration, not"
            f" {json.dumps(table)[:40]}"
        )
    # Imported late, because the import loads protobuf, and few servers receive such requests.
    from backline.repository.configuration.plain import read_plain

    return replace(read_plain(table, _UNREADABLE, {}, is_json=True), source=SOURCE)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidArgument(f"{_UNREADABLE}: '{printable(repeated)}' is given more than once")
    return table
