"""The names of triton_python_backend_utils, for models that import them from Triton's C++ module."""

from backline.workers.child.triton.importable.triton_python_backend_utils import *  # noqa: F403
from backline.workers.child.triton.importable.triton_python_backend_utils import __all__  # noqa: F401
