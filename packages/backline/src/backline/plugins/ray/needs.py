"""Determines the resources that the models of repositories need in a replica."""

from __future__ import annotations

from collections.abc import Iterable

from backline.backends.registry import FORMATS, PLATFORMS
from backline.lifecycle.memory.needs import Needs, load_kind
from backline.lifecycle.wanted import select
from backline.plugins.ray.shards import MEMORY, ModelNeed
from backline.repository.configuration import ConfigFiles
from backline.repository.location import open_repository
from backline.repository.repository import FoundModel
from backline_client.system.user_folders import user_cache


async def read_needs(locations: Iterable[str], config_name: str = "") -> list[ModelNeed]:
    """Returns the needs of all models at `locations`, as configured in configs/<config_name>.pbtxt if a model
    has this file. Raises BacklineError if a repository cannot be read.

    If the configuration of a model does not say how much memory the model needs, the memory is estimated from
    the size of the files of those versions that the model's version policy selects.
    """
    needs: list[ModelNeed] = []
    estimates = Needs()
    configs = ConfigFiles(config_name, platforms=PLATFORMS)
    for location in locations:
        repository = open_repository(location, formats=FORMATS, cache=user_cache(), configs=configs)
        try:
            needs += [_need(found, estimates) for found in await repository.scan()]
        finally:
            await repository.close()
    return needs


def _need(found: FoundModel, estimates: Needs) -> ModelNeed:
    config = found.config
    amounts = dict(config.ray_actor_options)
    if MEMORY not in amounts:
        amounts[MEMORY] = float(_memory(found, estimates))
    steps = () if config.ensemble is None else tuple(step.model for step in config.ensemble.steps)
    return ModelNeed(found.name, amounts, steps)


def _memory(found: FoundModel, estimates: Needs) -> int:
    selected, _ = select([one.version for one in found.versions], found.config.version_policy)
    total = 0
    for version in found.versions:
        if version.version in selected and version.path is not None:
            sizes = {name: file.size for name, file in version.files.items()}
            need = estimates.of(load_kind(found.config, version.fingerprint, version.path, sizes))
            total += need.peak - need.runtime
    return total
