"""What models of Triton's Python backend import: this folder is on the path of every worker process."""

from backline.workers.process.triton.api import *  # noqa: F403
from backline.workers.process.triton.api import __all__  # noqa: F401
