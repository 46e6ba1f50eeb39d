"""Ray as the engine of a fleet: Ray places replicas of the server, restarts and scales them.

Requests do not pass through Ray: clients and servers in front send them to the replicas themselves.
"""

from backline.ray.deployment import Deployment, deployment

__all__ = ["Deployment", "deployment"]
