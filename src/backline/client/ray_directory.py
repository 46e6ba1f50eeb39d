"""Finds the replicas of a deployment that Ray runs. Needs the extra `ray`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from backline.engine.errors import InvalidArgument, Unavailable

#: Ray's namespace for the actors of all deployments.
NAMESPACE: Final = "backline"
#: Maximum wait for an answer from the controller of a deployment, in seconds.
_TIMEOUT = 2.0


def controller_name(deployment: str) -> str:
    """Returns the name of the actor that runs a deployment."""
    return f"{deployment}/controller"


def require_ray() -> Any:
    """Returns the module ray. Raises InvalidArgument if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InvalidArgument(f"Ray is not installed: pip install 'backline[ray]' ({error})") from None
    return ray


def join_ray(address: str | None = None) -> Any:
    """Connects this process to Ray if it is not connected yet, and returns the module ray.

    `address` defaults to RAY_ADDRESS, or else to a cluster on this machine. Raises Unavailable if Ray cannot
    be reached.
    """
    ray = require_ray()
    if not ray.is_initialized():
        try:
            ray.init(
                address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING"
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise Unavailable(
                f"cannot reach Ray at {address or 'RAY_ADDRESS'}: {reason}. Start Ray (ray start --head), or"
                " check the address"
            ) from None
    return ray


def replica_urls(deployment: str) -> Sequence[str]:
    """Returns the URLs of the replicas that take requests.

    Blocks. Raises Unavailable if there are none, or if Ray cannot name them.
    """
    ray = join_ray()
    try:
        controller = ray.get_actor(controller_name(deployment), namespace=NAMESPACE)
        urls: Sequence[str] = ray.get(controller.urls.remote(), timeout=_TIMEOUT)
    except ValueError:
        raise Unavailable(f"Ray runs no deployment named '{deployment}'") from None
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Unavailable(
            f"the controller of the deployment '{deployment}' does not answer: {reason}"
        ) from None
    if not urls:
        raise Unavailable(f"no replica of the deployment '{deployment}' takes requests at the moment")
    return urls
