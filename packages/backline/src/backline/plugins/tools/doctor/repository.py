"""Checks models in repositories by reading their files and configurations, without loading them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from backline.backends.registry import FORMATS, PLATFORMS, choose
from backline.cli.model_folder import check_ensembles, check_model
from backline.engine.config.model_config import ModelConfig
from backline.engine.numbers import format_bytes
from backline.environments.requirements import find_requirements
from backline.environments.uv import Uv
from backline.plugins.tools.doctor.finding import Finding, error, note, ok, warning
from backline.repository.configuration import ConfigFiles
from backline.repository.local import LocalRepository
from backline.repository.location import open_repository
from backline.repository.repository import FoundModel
from backline.server import ServerOptions
from backline_client.system.user_folders import user_cache
from backline_client.values.errors import BacklineError

#: The name of the extra that installs a backend's runtime, for backends whose own name differs.
_EXTRAS = {"onnxruntime": "onnx", "pytorch": "torch"}
#: The suffixes of model files that can execute code when they are loaded.
_PICKLES = (".pkl", ".pickle", ".joblib")
#: The start of the text that Git LFS writes instead of the content of a file that was not fetched.
_LFS = b"version https://git-lfs.github.com/spec/"
_LONG_DELAY_US = 100_000
#: If two adjacent buckets differ by more than this factor, half of a padded input, or more, can be padding.
_WIDE = 2.0
#: The allowed batch sizes are reported if more than this share of a batch can be padding.
_WASTE = 0.5
_THREAD_PARAMETERS = ("intra_op_thread_count", "INTRA_OP_THREAD_COUNT", "thread_count", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A model as its files describe it. `backend` is empty if the backend is unknown."""

    name: str
    config: ModelConfig
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    backend: str = ""
    #: Whether the backend's runtime is installed.
    installed: bool = True
    #: The total size of the model's files, in bytes.
    size: int = 0
    #: Files that are only Git LFS pointers.
    pointers: tuple[str, ...] = ()
    #: Files that can execute code when they are loaded, and that the options do not trust.
    pickles: tuple[str, ...] = ()
    #: Whether the model lists packages that must be installed into an environment.
    needs_environment: bool = False


@dataclass(frozen=True, slots=True)
class Repositories:
    """The models of all repositories, and the facts about the machine that is to serve them.
    `memory_available` is in bytes.
    """

    models: tuple[DescribedModel, ...] = ()
    #: The reason why each unreadable repository cannot be read, by location.
    problems: Mapping[str, str] = field(default_factory=dict)
    locations: tuple[str, ...] = ()
    cores: int = 1
    memory_available: int = 1 << 40
    gpu: bool = False
    has_uv: bool = True


def reachable(found: Repositories) -> Iterator[Finding]:
    for location, problem in found.problems.items():
        yield error(
            f"'{location}' cannot be read: {problem}",
            "The server does not start without it.",
            "Correct the location, or make it readable for this user.",
        )
    if not found.problems:
        yield ok(f"{', '.join(found.locations)} can be read")


def empty(found: Repositories) -> Iterator[Finding]:
    if not found.models and not found.problems:
        yield warning(
            f"There are no models in {', '.join(found.locations)}",
            "The server starts, but requests to any model get 404.",
            "A repository has <model>/<version>/<file>, such as add1/1/model.onnx. 'backline new' creates a"
            " model to start from.",
        )
    elif found.models:
        yield ok(f"{len(found.models)} {'model' if len(found.models) == 1 else 'models'}")


def configurations(found: Repositories) -> Iterator[Finding]:
    wrong = False
    for model in found.models:
        for text in model.errors:
            wrong = True
            yield error(
                f"{model.name}: {text}",
                "The model does not load; the others do.",
                "Correct the file that the message names. 'backline config validate' checks it again.",
            )
        for text in model.warnings:
            wrong = True
            yield warning(
                f"{model.name}: {text}",
                "The model may not do what its author meant.",
                "'backline config explain' shows where each value comes from.",
            )
    if found.models and not wrong:
        yield ok("All configurations are valid")


def runtimes(found: Repositories) -> Iterator[Finding]:
    missing = [model for model in found.models if not model.installed]
    for model in missing:
        yield error(
            f"{model.name}: the runtime of backend '{model.backend}' is not installed",
            "The model does not load.",
            f"pip install 'backline[{_EXTRAS.get(model.backend, model.backend)}]'",
        )
    if found.models and not missing:
        yield ok("All runtimes are installed")


def environment_builder(found: Repositories) -> Iterator[Finding]:
    needing = [model.name for model in found.models if model.needs_environment]
    if needing and not found.has_uv:
        yield error(
            f"uv is not installed, and these models need environments: {', '.join(needing)}",
            "Each has a requirements.txt or another list of packages, which uv installs for it.",
            "pip install 'backline[envs]'",
        )
    else:
        yield ok("Environments of Python models can be built")


def pointer_files(found: Repositories) -> Iterator[Finding]:
    missing = [(model, path) for model in found.models for path in model.pointers]
    for model, path in missing:
        yield error(
            f"{model.name}: '{path}' is a Git LFS pointer, not the file itself",
            "Git fetched only a reference to the content, so the model does not load.",
            "Run 'git lfs pull' in the repository.",
        )
    if found.models and not missing:
        yield ok("No file is a Git LFS pointer")


def pickles(found: Repositories) -> Iterator[Finding]:
    untrusted = [(model, path) for model in found.models for path in model.pickles]
    for model, path in untrusted:
        yield error(
            f"{model.name}: '{path}' is a pickle, which the server does not load",
            "Loading a pickle can execute any code in it.",
            f"Convert it to skops or ONNX, or start the server with --trust-pickle-model {model.name}.",
        )
    if found.models and not untrusted:
        yield ok("No model is an untrusted pickle")


def gpus(found: Repositories) -> Iterator[Finding]:
    wanting = [
        model.name
        for model in found.models
        if any(group.kind == "gpu" or group.gpus for group in model.config.instance_groups)
    ]
    if wanting and not found.gpu:
        yield warning(
            f"This machine has no GPU, and these models ask for one: {', '.join(wanting)}",
            "They run on the CPU, which is much slower, or do not load if --strict-devices is set.",
            "Set `kind: KIND_CPU` in instance_group, or use a machine with a GPU.",
        )
    else:
        yield ok("This machine has the devices that models ask for")


def threads(found: Repositories) -> Iterator[Finding]:
    wrong = False
    for model in found.models:
        instances = model.config.instance_count or 1
        each = _threads(model.config)
        if instances * max(each, 1) > found.cores and (instances > 1 or each > 1):
            wrong = True
            yield warning(
                f"{model.name}: {instances} instances with {max(each, 1)} threads each, on {found.cores}"
                " cores",
                "Runs that have more threads than there are cores slow one another down.",
                f"Keep instances x threads at or below {found.cores}, or leave both out: the server measures"
                " the model and decides. 'backline tune' searches for the best combination.",
            )
    if found.models and not wrong:
        yield ok("No model asks for more threads than there are cores")


def _threads(config: ModelConfig) -> int:
    """Returns the number of threads that each run of a model uses; 0 if the configuration does not set it."""
    values = [config.parameters.get(key, "") for key in _THREAD_PARAMETERS]
    return max((int(value) for value in values if value.isdecimal()), default=0)


def batching(found: Repositories) -> Iterator[Finding]:
    wrong = False
    for model in found.models:
        config = model.config
        if config.dynamic_batching and config.max_batch_size == 0:
            wrong = True
            yield warning(
                f"{model.name}: dynamic_batching is set, but max_batch_size is 0",
                "Every request runs alone.",
                "Remove max_batch_size, so that the server finds out whether the model can be batched, or set"
                " it to at least 1.",
            )
        if config.max_queue_delay_us >= _LONG_DELAY_US:
            wrong = True
            yield warning(
                f"{model.name}: a request may wait {config.max_queue_delay_us / 1000:g} ms for others to"
                " join its batch",
                "When requests are few, each takes that much longer. Under load, batches fill without delay.",
                "Remove max_queue_delay_microseconds, or set at most a few milliseconds.",
            )
    if found.models and not wrong:
        yield ok("Batching is configured consistently")


def padding(found: Repositories) -> Iterator[Finding]:
    wrong = False
    for model in found.models:
        if model.config.joining is None:
            continue
        for name, rule in model.config.joining.padding.items():
            wide = [f"{one} to {two}" for one, two in pairwise(rule.buckets) if two > _WIDE * one]
            if wide:
                wrong = True
                yield warning(
                    f"{model.name}: padding of '{name}' jumps from {', '.join(wide)}",
                    "An input just above the shorter length is padded to about twice its size or more, and"
                    " the model computes on the padding.",
                    "Add lengths between these two to `buckets`.",
                )
        sizes = (1, *model.config.joining.allowed_batch_sizes)
        gaps = [f"{one} to {two}" for one, two in pairwise(sizes) if 1 - (one + 1) / max(two, 1) > _WASTE]
        if gaps:
            wrong = True
            yield warning(
                f"{model.name}: allowed_batch_sizes jump from {', '.join(gaps)}",
                "A batch just above the smaller size is filled up with more copies than it has items.",
                "Add sizes between these two.",
            )
    if found.models and not wrong:
        yield ok("Padding wastes less than half of a batch")


def sizes(found: Repositories) -> Iterator[Finding]:
    large = [model for model in found.models if model.size > found.memory_available]
    for model in large:
        yield error(
            f"{model.name} has files of {format_bytes(model.size)}, but only"
            f" {format_bytes(found.memory_available)} of memory is free",
            "The load runs out of memory.",
            "Use a larger machine, or a quantised model.",
        )
    total = sum(model.size for model in found.models)
    if not large and total > found.memory_available:
        yield warning(
            f"All models together have files of {format_bytes(total)}, more than the free memory",
            "They do not all fit into memory at the same time.",
            "Set --memory-budget, so that idle models are unloaded to make room for others.",
        )
    elif not large and found.models:
        yield ok(f"The models' files, {format_bytes(total)}, fit into memory")


def versions(found: Repositories) -> Iterator[Finding]:
    all_served = [
        model.name
        for model in found.models
        if model.config.version_policy.latest is None and model.config.version_policy.specific is None
    ]
    for name in all_served:
        yield note(
            f"{name}: version_policy serves all versions",
            "Each version in the folder takes memory, even an old one that gets no requests.",
            "Serve the latest, or name versions: `versions = [...]`.",
        )
    if found.models and not all_served:
        yield ok("No model serves all of its versions")


REPOSITORY: Mapping[str, Callable[[Repositories], Iterator[Finding]]] = {
    "reachable": reachable,
    "empty": empty,
    "configurations": configurations,
    "runtimes": runtimes,
    "environment-builder": environment_builder,
    "pointer-files": pointer_files,
    "pickles": pickles,
    "gpus": gpus,
    "threads": threads,
    "batching": batching,
    "padding": padding,
    "sizes": sizes,
    "versions": versions,
}


def read_repositories(
    options: ServerOptions, *, cores: int, memory_available: int, gpu: bool
) -> Repositories:
    """Returns the facts about the repositories of a server with these options. Of the files of remote
    repositories, only the configurations are read.
    """
    models: list[DescribedModel] = []
    problems: dict[str, str] = {}
    for location in map(str, options.repositories):
        try:
            models += _described(location, options)
        except (BacklineError, OSError) as error:
            problems[location] = error.message if isinstance(error, BacklineError) else str(error)
    return Repositories(
        tuple(models),
        problems,
        tuple(map(str, options.repositories)),
        cores,
        memory_available,
        gpu,
        _has_uv(),
    )


def _described(location: str, options: ServerOptions) -> Iterable[DescribedModel]:
    cache = options.lifecycle.cache_folder or user_cache()
    configs = ConfigFiles(
        options.config_name, complete=options.lifecycle.complete_configs, platforms=PLATFORMS
    )
    repository = open_repository(
        location, formats=FORMATS, cache=cache, configs=configs, name=options.model_name
    )
    if isinstance(repository, LocalRepository):
        root = Path(location).absolute()
        checked = [check_model(root, found, load=False) for found in repository.scan_now()]
        if all(one.found.folder for one in checked):
            check_ensembles(checked)
        return [
            _describe(one.found, one.errors, one.warnings, root if root.is_dir() else root.parent, options)
            for one in checked
        ]

    async def scan() -> list[FoundModel]:
        try:
            return await repository.scan()
        finally:
            await repository.close()

    found = asyncio.run(scan())
    return [
        _describe(one, [one.problem] if one.problem else [], one.warnings, None, options) for one in found
    ]


def _describe(
    found: FoundModel,
    errors: Iterable[str],
    warnings: Iterable[str],
    root: Path | None,
    options: ServerOptions,
) -> DescribedModel:
    """Returns the facts about a model. `root` is the folder of a local repository; None if the repository is
    remote.
    """
    files = {path: entry for version in found.versions for path, entry in version.files.items()}
    loadable = next((one for one in reversed(found.versions) if one.path is not None), None)
    backend, installed, needs = "", True, False
    if loadable is not None and loadable.path is not None and found.config.ensemble is None:
        place = (root or Path()) / loadable.path
        try:
            entry = choose(found.config, place)
        except BacklineError:
            entry = None
        if entry is not None:
            backend = entry.name
            modules = [one for one in entry.imports if ":" not in one]
            module = (*modules, entry.package)[0].partition(".")[0]
            installed = not module or importlib.util.find_spec(module) is not None
        if entry is not None and entry.hosted and root is not None:
            folder = place if place.is_dir() else place.parent
            try:
                needs = find_requirements(folder, folder.parent, found.config.python) is not None
            except BacklineError as error:
                errors = (*errors, error.message)
    lifecycle = options.lifecycle
    is_trusted = lifecycle.trust_pickle or any(
        fnmatchcase(found.name, pattern) for pattern in lifecycle.trust_pickle_models
    )
    return DescribedModel(
        found.name,
        found.config,
        tuple(errors),
        (*found.config.warnings, *warnings),
        backend,
        installed,
        sum(entry.size for entry in files.values()),
        () if root is None else tuple(path for path in files if _is_pointer(root / path)),
        ()
        if is_trusted or backend != "sklearn"
        else tuple(path for path in files if path.endswith(_PICKLES)),
        needs,
    )


def _is_pointer(file: Path) -> bool:
    try:
        if os.path.getsize(file) > 1024:
            return False
        with file.open("rb") as opened:
            return opened.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _has_uv() -> bool:
    if shutil.which("uv"):
        return True
    try:
        Uv()
    except BacklineError:
        return False
    return True
