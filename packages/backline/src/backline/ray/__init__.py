"""Runs a fleet on Ray, which places, restarts and scales replicas of the server.

Requests do not pass through Ray. Clients, and servers in front of a deployment, send requests directly to the
replicas.
"""

from backline.ray.deployment import Deployment, deployment
from backline.ray.scaling import ServeScaler

__all__ = ["Deployment", "ServeScaler", "deployment"]
