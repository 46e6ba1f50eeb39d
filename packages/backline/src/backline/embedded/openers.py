"""Opens the plug-ins that a file asks for, such as one that declares routes, when the engine starts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from backline.engine.engine import Engine
from backline_client.values.errors import InvalidArgument

#: The plug-ins, as "module:function". Each is opened if NAME.json is in the state folder, or NAME.toml in the
#: state folder or in a local repository. The function takes the engine, the state folder, and the folders
#: that may hold NAME.toml, and is called before the first model is loaded.
OPENERS: Final = {"routes": "backline.plugins.traffic.routes:open_routes"}


def open_asked(engine: Engine, state_folder: Path, locations: Iterable[str]) -> None:
    """Opens the plug-ins for which there are files. Raises InvalidArgument if a file is not valid, or its
    plug-in is missing.
    """
    folders = [state_folder, *(Path(one) for one in locations if "://" not in one)]
    for name, target in OPENERS.items():
        files = [state_folder / f"{name}.json", *(folder / f"{name}.toml" for folder in folders)]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            continue
        module, _, function = target.partition(":")
        try:
            opener = getattr(import_module(module), function)
        except ImportError as error:
            raise InvalidArgument(f"'{found}' needs {module}, which cannot be imported: {error}") from error
        opener(engine, state_folder, folders)
