"""Examines a machine, its models, or a running server: what `backline doctor` does, for programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import structs

from backline.backends.registry import FORMATS
from backline.cli.command import run
from backline.cli.serve import command as serve_command
from backline.cli.serve.fields import unknown_variables
from backline.plugins.tools.doctor.addresses import ADDRESSES, read_exposure
from backline.plugins.tools.doctor.files import FILES, read_files
from backline.plugins.tools.doctor.finding import Diagnosis, Repair, Severity, diagnose
from backline.plugins.tools.doctor.machine import MACHINE, read_machine
from backline.plugins.tools.doctor.repository import REPOSITORY, read_repositories
from backline.plugins.tools.doctor.running import checks_of, read_running
from backline.plugins.tools.doctor.software import SOFTWARE, read_software
from backline.repository.remote.unpack import ARCHIVES
from backline.server import ServerOptions
from backline_client.client.options import ClientOptions

_SERVER_SCHEMES = ("grpc://", "grpcs://", "unix:", "http+unix:", "grpc+unix:")


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of `doctor`: what the checks found, and a sentence on each repair that was tried."""

    diagnoses: tuple[Diagnosis, ...]
    repairs: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no check found an error. Warnings and notes are allowed."""
        return all(one.finding.severity is not Severity.ERROR for one in self.diagnoses)


def doctor(
    *targets: str | Path,
    options: ServerOptions | None = None,
    connection: ClientOptions | None = None,
    fix: bool = False,
) -> Examination:
    """Finds out what is wrong with this machine, with the models in repositories, or with running servers.

    `targets` are the URLs of servers, or else repositories. Without the URL of a server, the machine, the
    packages, the files and the addresses are checked for a server with these `options`, and the models in
    the repositories, without loading them. `connection` says how to reach servers. With `fix`, repairs what
    can be repaired safely, such as the permissions of files, and checks again.

    Raises BacklineError if a server cannot be reached.

    >>> examination = backline.doctor("models/")
    >>> [one.finding.what for one in examination.diagnoses if one.finding.severity == "error"]
    []
    """
    options = ServerOptions(tuple(targets)) if options is None else options
    if targets:
        options = structs.replace(options, repositories=tuple(targets))
    connection = connection or ClientOptions()
    diagnoses = tuple(_diagnoses(options, connection))
    repairs = [one.finding.repair for one in diagnoses if one.finding.repair is not None] if fix else []
    outcomes = tuple(map(_outcome, repairs))
    if repairs:
        diagnoses = tuple(_diagnoses(options, connection))
    return Examination(diagnoses, outcomes)


def _diagnoses(options: ServerOptions, connection: ClientOptions) -> Iterator[Diagnosis]:
    urls = [str(one) for one in options.repositories if is_server(str(one))]
    if urls:
        for url in urls:
            server = run(read_running(url, connection))
            yield from diagnose(f"Server {url}", checks_of(server), server)
        return
    software = read_software(unknown_variables(serve_command, os.environ))
    machine = read_machine(
        max_connections=options.limits.max_connections,
        compute_threads=options.lifecycle.compute_threads,
        allow_client_shm=options.allow_client_shm,
    )
    yield from diagnose("Software", SOFTWARE, software)
    yield from diagnose("Machine", MACHINE, machine)
    yield from diagnose("Files", FILES, read_files(options))
    yield from diagnose("Addresses", ADDRESSES, read_exposure(options))
    if options.repositories:
        repositories = read_repositories(
            options,
            cores=machine.usable_cores,
            memory_available=machine.memory_available,
            gpu=software.gpu,
        )
        yield from diagnose("Models", REPOSITORY, repositories)


def is_server(location: str) -> bool:
    """Returns whether a location is the URL of a server, rather than of an archive or a model file to
    download.
    """
    if location.startswith(("http://", "https://")):
        path = urlsplit(location).path.lower()
        suffixes = (suffix for format in FORMATS for suffix in format.suffixes)
        return not path.endswith((*ARCHIVES, *suffixes))
    return location.startswith(_SERVER_SCHEMES)


def _outcome(repair: Repair) -> str:
    try:
        repair.apply()
    except OSError as error:
        return f"could not {repair}: {error.strerror or error}"
    return f"done: {repair}"
