"""Models for Triton's Python backend import this: its folder is on the path of every worker process."""

from backline.workers.child.triton.api import *  # noqa: F403
from backline.workers.child.triton.api import __all__  # noqa: F401
