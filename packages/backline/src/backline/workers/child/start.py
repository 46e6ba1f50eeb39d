"""The entry point of a worker process, and of the process that decodes its files, run as a file by the
model's interpreter.

The interpreter need not have Backline installed, because this file imports the two packages of Backline from
the server's folders: its own, and the first argument. Other packages at those places are hidden, so that
every other package comes from the model's environment, which must have NumPy and msgspec.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _import_package(name: str, root: Path) -> None:
    spec = spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None, "it is a file"
    assert spec.loader is not None, "it is Python"
    sys.modules[name] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


def _main() -> None:
    faulthandler.enable()
    sys.path.pop(0)  # removes this folder: a model's `import worker` must not find our module
    gc.disable()  # imports create little garbage, so collections would only take time
    _import_package("backline_client", Path(sys.argv[1]))
    _import_package("backline", Path(__file__).resolve().parents[2])
    descriptors = [int(argument) for argument in sys.argv[2:]]
    if len(descriptors) == 1:
        from backline.workers.child import decoder

        decoder.main(descriptors[0])
        return
    from backline.system.garbage import exempt_imports
    from backline.workers.child.worker import end_with_parent, main

    exempt_imports()
    end_with_parent()
    data, control, calls, arena, parent = descriptors
    import os

    if os.getppid() != parent:  # the server ended before `end_with_parent` took effect
        os._exit(1)
    main(data, control, calls, arena)


if __name__ == "__main__":
    _main()
