"""The same under the name of Triton's C++ part."""

from backline.workers.child.triton.api import *  # noqa: F403
from backline.workers.child.triton.api import __all__  # noqa: F401
