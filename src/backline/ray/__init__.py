"""Ray as the engine of a fleet: it places, restarts and scales replicas of the server.

Requests do not pass through Ray: clients and servers in front send them to the replicas themselves.
"""

from backline.ray.deployment import Deployment, deployment

__all__ = ["Deployment", "deployment"]
