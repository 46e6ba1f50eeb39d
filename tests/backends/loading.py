"""Models loaded without a server, through the registry as a server does it."""

from __future__ import annotations

from pathlib import Path

from backline.backends.backend import LoadedModel, LoadOptions
from backline.backends.registry import choose
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.loader import load as load_version


def load(
    path: Path,
    *,
    trust_pickle: bool = False,
    trust_skops_types: frozenset[str] = frozenset(),
    may_run_code: bool = True,
    **fields: object,
) -> LoadedModel:
    """Loads a file as the lifecycle does local ones; `may_run_code=False` as remote ones."""
    config = ModelConfig("m", source="config.pbtxt", **fields)  # type: ignore[arg-type]
    options = LoadOptions(
        trust_pickle=trust_pickle, trust_skops_types=trust_skops_types, may_run_code=may_run_code
    )
    return choose(config, path).backend().load(path, config, options)


def lane_of(path: Path, **fields: object) -> tuple[str, str]:
    """Where a model runs whose configuration asks for the event loop, and the warning about it, if any."""
    config = ModelConfig("m", source="config.pbtxt", lane="inline", **fields)  # type: ignore[arg-type]
    loaded = load_version(path, config, options=LoadOptions(may_run_code=True))
    loaded.close()
    return loaded.lane, " ".join(loaded.warnings)


def imports_of(backend: str) -> str:
    """A program that imports the runtime of a backend as the fork server of trials does."""
    return (
        "from backline.backends.plugin import BACKENDS\n"
        "from backline.lifecycle.loading.isolation.fork_server import import_runtimes\n"
        f"import_runtimes(next(one.imports for one in BACKENDS.built_in if one.name == {backend!r}))\n"
    )
