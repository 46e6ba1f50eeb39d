"""Checks the Python interpreter and the installed packages."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from backline.cli.plugins import DOORS
from backline.plugins.tools.doctor.finding import Finding, error, note, ok, warning

#: The newest Python that Backline is tested with.
NEWEST_PYTHON = (3, 14)
#: Packages whose runtimes cannot use a GPU (for torch, only some builds), and how to replace each package
#: with one that can.
_WITHOUT_GPU = {
    "onnxruntime": "pip uninstall onnxruntime && pip install 'backline[onnx-gpu]'",
    "tensorflow-cpu": "pip uninstall tensorflow-cpu && pip install 'tensorflow[and-cuda]'",
    "torch": "install the wheel with CUDA, see https://pytorch.org/get-started/locally/",
}
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9][0-9.]*)")


@dataclass(frozen=True, slots=True)
class Software:
    """The interpreter and the packages that a server would use if it were started in this environment.

    `packages` maps the names of installed packages to their versions. `least` maps the names of packages to
    the lowest versions that Backline works with.
    """

    python: tuple[int, int]
    #: Whether this build of Python has no global interpreter lock.
    free_threaded: bool
    #: The debugging settings that make Python slow, by the names that users know, such as "-X dev".
    debugging: tuple[str, ...]
    has_uvloop: bool
    #: The implementation of protobuf: upb, cpp or python.
    protobuf: str
    packages: Mapping[str, str]
    least: Mapping[str, str]
    #: Whether this machine has an NVIDIA GPU.
    gpu: bool
    #: Warnings about environment variables that start with BACKLINE_ but set no option.
    variables: tuple[str, ...] = ()
    #: Why installed plug-ins cannot be used, a sentence for each.
    plugin_problems: tuple[str, ...] = ()


def python(software: Software) -> Iterator[Finding]:
    name = "Python {}.{}".format(*software.python)
    if software.python > NEWEST_PYTHON:
        yield note(
            f"{name} is newer than the versions that Backline is tested with",
            "Runtimes publish wheels for a new Python months after its release.",
            "Use Python {}.{} if something fails to install or load.".format(*NEWEST_PYTHON),
        )
    else:
        yield ok(name)


def interpreter_lock(software: Software) -> Iterator[Finding]:
    if software.free_threaded:
        yield warning(
            "This is a free-threaded build of Python",
            "Its single-threaded code is slower, and the server's event loop is single-threaded. A runtime"
            " that does not support free threading enables the global interpreter lock again.",
            "Use the standard build of Python. Runtimes release the lock while they compute.",
        )
    else:
        yield ok("The standard build of Python")


def debug_settings(software: Software) -> Iterator[Finding]:
    for setting in software.debugging:
        yield warning(
            f"Python runs with {setting}",
            "This makes each request several times slower.",
            "Turn it off in production.",
        )
    if not software.debugging:
        yield ok("No debug setting of Python is on")


def event_loop(software: Software) -> Iterator[Finding]:
    if software.has_uvloop:
        yield ok("uvloop runs the event loop")
    else:
        yield warning(
            "uvloop is not installed",
            "The server then uses asyncio's event loop, which handles about half as many requests.",
            "pip install uvloop",
        )


def protobuf(software: Software) -> Iterator[Finding]:
    if software.protobuf == "python":
        yield warning(
            "protobuf uses its pure Python implementation",
            "Parsing a gRPC message then takes dozens of times as long.",
            "Unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or reinstall protobuf from its wheel.",
        )
    else:
        yield ok(f"protobuf uses its native implementation ({software.protobuf})")


def package_versions(software: Software) -> Iterator[Finding]:
    old = [
        (name, least)
        for name, least in sorted(software.least.items())
        if _numbers(software.packages[name]) < _numbers(least)
    ]
    for name, least in old:
        yield error(
            f"{name} {software.packages[name]} is older than {least}",
            "Backline uses functions that the installed version lacks or gets wrong.",
            f"pip install '{name}>={least}'",
        )
    if not old:
        yield ok(f"{len(software.least)} packages have versions that Backline works with")


def conflicting_packages(software: Software) -> Iterator[Finding]:
    rivals = [
        names
        for names in (("onnxruntime", "onnxruntime-gpu"), ("tensorflow", "tensorflow-cpu"))
        if all(name in software.packages for name in names)
    ]
    for first, second in rivals:
        yield error(
            f"{first} and {second} are both installed",
            "Both install the same module, so files of one overwrite files of the other. Which of them is"
            " imported depends on the order of installation.",
            f"pip uninstall {first} {second}, then install the one that you need",
        )
    if not rivals:
        yield ok("No two packages install the same runtime")


def gpu_packages(software: Software) -> Iterator[Finding]:
    if not software.gpu:
        yield ok("No NVIDIA GPU, so runtimes for the CPU are the right ones")
        return
    without = [name for name in _WITHOUT_GPU if name in software.packages and _cannot_use_gpu(name, software)]
    for name in without:
        yield warning(
            f"This machine has an NVIDIA GPU, but {name} {software.packages[name]} cannot use it",
            "Its models run on the CPU.",
            _WITHOUT_GPU[name],
        )
    if not without:
        yield ok("The installed runtimes can use the GPU")


def _cannot_use_gpu(name: str, software: Software) -> bool:
    if name == "torch":
        return software.packages[name].endswith("+cpu")
    return name != "onnxruntime" or "onnxruntime-gpu" not in software.packages


def environment_variables(software: Software) -> Iterator[Finding]:
    for text in software.variables:
        what, _, hint = text.partition("; ")
        yield warning(
            what[:1].upper() + what[1:],
            "The option that it was meant to set keeps its default.",
            hint[:1].upper() + hint[1:] + ("" if hint.endswith("?") else "."),
        )
    if not software.variables:
        yield ok("Every environment variable that starts with BACKLINE_ has an effect")


def plugins(software: Software) -> Iterator[Finding]:
    for problem in software.plugin_problems:
        what, _, advice = problem.partition(": ")
        yield error(
            what[:1].upper() + what[1:],
            "The server starts without it, and refuses what only this plug-in serves.",
            f"{advice[:1].upper()}{advice[1:]}.",
        )
    if not software.plugin_problems:
        yield ok("Every installed plug-in can be used")


SOFTWARE: Mapping[str, Callable[[Software], Iterator[Finding]]] = {
    "python": python,
    "interpreter-lock": interpreter_lock,
    "debug-settings": debug_settings,
    "event-loop": event_loop,
    "protobuf": protobuf,
    "package-versions": package_versions,
    "conflicting-packages": conflicting_packages,
    "gpu-packages": gpu_packages,
    "environment-variables": environment_variables,
    "plugins": plugins,
}


def read_software(variables: Sequence[str]) -> Software:
    """Returns the facts for the checks. `variables` are the warnings of `unknown_variables`."""
    packages = {
        name.lower().replace("_", "-"): one.version
        for one in metadata.distributions()
        if (name := one.metadata["Name"])
    }
    return Software(
        python=sys.version_info[:2],
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        debugging=tuple(_debugging(os.environ)),
        has_uvloop=sys.platform == "win32" or importlib.util.find_spec("uvloop") is not None,
        protobuf=_protobuf(),
        packages=packages,
        least={
            name: least for name, least in _required(metadata.requires("backline") or ()) if name in packages
        },
        gpu=any(Path("/dev").glob("nvidia[0-9]*")),
        variables=tuple(variables),
        plugin_problems=tuple(one.problem for door in DOORS for one in door.installed if one.problem),
    )


def _debugging(environment: Mapping[str, str]) -> Iterator[str]:
    if sys.flags.dev_mode:
        yield "-X dev or PYTHONDEVMODE"
    if environment.get("PYTHONASYNCIODEBUG"):
        yield "PYTHONASYNCIODEBUG"
    if environment.get("PYTHONMALLOC", "").endswith("debug"):
        yield f"PYTHONMALLOC={environment['PYTHONMALLOC']}"
    if hasattr(sys, "gettotalrefcount"):
        yield "a debug build of the interpreter"


def _protobuf() -> str:
    from google.protobuf.internal import api_implementation

    kind: str = api_implementation.Type()
    return kind


def _required(requirements: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the packages in a list of requirements, each with the lowest version that is allowed."""
    for text in requirements:
        if found := _REQUIREMENT.match(text):
            yield found[1].lower().replace("_", "-"), found[2]


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers at the start of a version: (1, 20) for "1.20rc1" and "1.20+cpu"."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
