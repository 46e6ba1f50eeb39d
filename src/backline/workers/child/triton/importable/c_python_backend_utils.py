"""The same under the name of Triton's C++ part."""

from backline.workers.child.triton.importable.triton_python_backend_utils import *  # noqa: F403
from backline.workers.child.triton.importable.triton_python_backend_utils import __all__  # noqa: F401
