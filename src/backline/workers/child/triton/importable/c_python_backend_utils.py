"""The other name of the same: in Triton it is the part that is written in C++."""

from backline.workers.child.triton.api import *  # noqa: F403
from backline.workers.child.triton.api import __all__  # noqa: F401
