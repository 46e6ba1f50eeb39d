"""Where a worker process begins: run as a file, by whatever interpreter the model has.

The interpreter need not have this package installed: it is taken from the folder that this file is in, without anything that lies beside
it, so that the model's environment decides about every other package. NumPy and msgspec must be there.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _import_package() -> None:
    root = Path(__file__).resolve().parents[2]
    spec = spec_from_file_location("backline", root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None, "it is a file"
    assert spec.loader is not None, "it is Python"
    sys.modules["backline"] = package = module_from_spec(spec)
    spec.loader.exec_module(package)


def _main() -> None:
    faulthandler.enable()
    sys.path.pop(0)  # this folder, whose modules are nobody else's
    gc.disable()  # what is imported stays: it is not looked through for garbage
    _import_package()
    from backline.workers.child.worker import end_with_parent, main

    gc.freeze()
    gc.enable()
    end_with_parent()
    data, control, calls, arena, parent = map(int, sys.argv[1:])
    import os

    if os.getppid() != parent:  # it went away before this could be asked for
        os._exit(1)
    main(data, control, calls, arena)


if __name__ == "__main__":
    _main()
