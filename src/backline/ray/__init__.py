"""Runs a fleet on Ray, which places, restarts and scales replicas of the server.

Requests do not pass through Ray: clients, and servers in front, send them directly to the replicas.
"""

from backline.ray.deployment import Deployment, deployment

__all__ = ["Deployment", "deployment"]
