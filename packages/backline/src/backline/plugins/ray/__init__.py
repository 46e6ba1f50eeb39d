"""Runs a fleet on Ray, which places, restarts and scales replicas of the server.

Requests do not pass through Ray. Clients, and servers in front of a deployment, send requests directly to the
replicas.
"""

from backline.plugins.ray.deployment import Deployment, deployment
from backline.plugins.ray.scaling import ServeScaler

__all__ = ["Deployment", "ServeScaler", "deployment"]
