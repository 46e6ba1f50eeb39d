"""The states of a model's versions, in the form of TensorFlow Serving's GetModelStatusResponse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from backline.engine.engine import Engine
from backline.engine.model import NO_VERSION, Model, ModelState
from backline_client.values.errors import NotFound
from backline_client.values.names import version_order
from backline_client.values.private_places import for_clients

#: The words for the states. A version that is loaded by its first request is as good as available.
_STATES: Final = {
    ModelState.UNKNOWN: "UNKNOWN",
    ModelState.ON_DEMAND: "AVAILABLE",
    ModelState.LOADING: "LOADING",
    ModelState.READY: "AVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.UNAVAILABLE: "END",
}


def versions_of(engine: Engine, name: str, version: str = "") -> list[Model]:
    """Returns the versions of a model, newest first, or only the one that `version`, a version or a label,
    names. Raises NotFound if there is none.
    """
    try:
        found = engine.versions(name)
    except NotFound:
        found = []
    found = [one for one in found if one.version != NO_VERSION]
    if not found:
        raise NotFound(f"Could not find any versions of model {name}")
    if version:
        wanted = engine.labels(name).get(version, version)
        found = [one for one in found if one.version == wanted]
        if not found:
            raise NotFound(f"Could not find version {version} of model {name}")
    return sorted(found, key=lambda one: version_order(one.version), reverse=True)


def status_document(versions: Sequence[Model]) -> dict[str, Any]:
    """Returns the states of versions in JSON's form of GetModelStatusResponse."""
    return {
        "model_version_status": [
            {
                "version": one.version,
                "state": _STATES[one.state],
                "status": {
                    "error_code": "UNKNOWN" if one.state is ModelState.UNAVAILABLE and one.reason else "OK",
                    "error_message": for_clients(one.reason),
                },
            }
            for one in versions
        ]
    }
