"""Environments built by real uv."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backline.environments import store as stores
from backline.environments.requirements import Requirements, find_requirements
from backline.environments.store import Environments, User
from backline.environments.uv import Uv, UvFailed, cause
from backline_client.system.file_lock import open_lock
from backline_client.values.errors import BacklineError, Internal, Unavailable
from support.repositories import put
from support.waiting import until

BUILD = """
import sys
from pathlib import Path
from backline.environments.requirements import find_requirements
from backline.environments.store import Environments, User
from backline.environments.uv import Uv

store, model = Path(sys.argv[1]), Path(sys.argv[2])
asked, user = find_requirements(model, model), User("m", str(model), str(model))
Environments(store).build(asked, Uv(), user, on_bytes=lambda done, total: None, stop=lambda: False)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put(tmp_path / "model" / "requirements.txt", "tinydb==4.8.0\n").parent


@pytest.fixture
def store(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "store")


def asked(model: Path) -> tuple[Requirements, User]:
    found = find_requirements(model, model)
    assert found is not None
    return found, User("m", str(model), str(model))


def build(store: Environments, model: Path, uv: Uv | None = None) -> None:
    requirements, user = asked(model)
    store.build(requirements, uv or Uv(), user, on_bytes=lambda done, total: None, stop=lambda: False)


def in_other_process(store: Environments, model: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(store.folder), str(model)])


def building(store: Environments) -> list[Path]:
    return list(store.folder.glob(".building-*"))


def test_an_interrupted_build_is_not_used_but_repeated(store: Environments, model: Path) -> None:
    other = in_other_process(store, model)
    until(lambda: building(store))
    other.send_signal(signal.SIGKILL)
    other.wait()

    assert store.find(*asked(model)) is None
    build(store, model)
    environment = store.find(*asked(model))
    assert environment is not None
    subprocess.run(
        [environment.python, "-c", "import tinydb, numpy, msgspec"],
        check=True,
        env={**os.environ, **environment.variables},
    )
    until(
        lambda: store.remove_unfinished() == 0 and not building(store)
    )  # its uv may have run on for a moment


def test_a_store_may_be_given_as_a_relative_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Environments(Path("cache/environments"))

    build(store, model)

    assert store.find(*asked(model)) is not None
    assert (tmp_path / "cache" / "environments").is_dir()


def test_concurrent_builds_of_one_environment_run_once(store: Environments, model: Path) -> None:
    others = [in_other_process(store, model) for _ in range(2)]
    most = 0
    while any(other.poll() is None for other in others):
        most = max(most, len(building(store)))
        time.sleep(0.005)

    assert [other.returncode for other in others] == [0, 0]
    assert most == 1
    assert [entry.digest for entry in store.entries()] == [asked(model)[0].digest]


def test_an_abandoned_build_stops_at_once(store: Environments, model: Path) -> None:
    uv = Uv()
    threading.Thread(target=lambda: (until(lambda: building(store)), uv.cancel())).start()

    with pytest.raises(Internal, match="the build was cancelled"):
        build(store, model, uv)
    assert building(store) == []


def test_a_failed_build_reports_uvs_message(store: Environments, model: Path) -> None:
    put(model / "requirements.txt", "numpy==1.26.4\nnumpy==2.1.3\n")

    with pytest.raises(
        Internal, match=r"model 'm' cannot be built from requirements.txt .*numpy==1.26.4 and numpy==2.1.3"
    ):
        build(store, model)
    assert store.entries() == []


@pytest.mark.parametrize("locked", [False, True], ids=["pyproject.toml", "uv.lock"])
def test_a_project_is_installed_at_its_locked_versions(
    store: Environments, tmp_path: Path, *, locked: bool
) -> None:
    model = tmp_path / "project"
    text = (
        '[project]\nname = "model"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["tinydb%s"]\n'
    )
    put(model / "pyproject.toml", text % "==4.7.0")
    if locked:
        Uv().run("lock", folder=model)
        put(model / "pyproject.toml", text % "")

    build(store, model)

    (entry,) = store.entries()
    assert entry.about.file == ("uv.lock" if locked else "pyproject.toml")
    assert "tinydb==4.7.0" in entry.about.packages
    assert not any(package.startswith("model==") for package in entry.about.packages)


def test_without_uv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BacklineError, match=r"pip install 'backline\[envs\]'"):
        Uv()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Environments, Path]:
    folder = tmp_path_factory.mktemp("built")
    store = Environments(folder / "store")
    model = put(folder / "model" / "requirements.txt", "tinydb==4.8.0\n").parent
    build(store, model)
    return store, model


def test_an_environment_is_listed_with_its_packages_and_models(
    built: tuple[Environments, Path],
) -> None:
    store, model = built
    store.find(*asked(model))

    (entry,) = store.entries()
    assert "tinydb==4.8.0" in entry.about.packages
    assert [user.model_folder for user in entry.users] == [str(model)]
    assert entry.in_use


def test_a_model_whose_requirements_changed_no_longer_uses_the_environment(
    built: tuple[Environments, Path],
) -> None:
    store, model = built
    store.find(*asked(model))
    put(model / "requirements.txt", "tinydb==4.7.0\n")

    (entry,) = store.entries()
    put(model / "requirements.txt", "tinydb==4.8.0\n")
    assert entry.users == ()


def test_an_environment_in_use_is_neither_removed_nor_replaced(built: tuple[Environments, Path]) -> None:
    store, model = built
    requirements, user = asked(model)
    assert store.find(requirements, user) is not None
    another = Environments(store.folder)

    assert not another.remove(requirements.digest)
    with pytest.raises(Unavailable, match="in use by a running server"):
        another.build(
            requirements, Uv(), user, on_bytes=lambda done, total: None, stop=lambda: False, again=True
        )
    assert store.find(requirements, user) is not None


def test_an_environment_is_rebuilt_if_its_interpreter_is_missing(built: tuple[Environments, Path]) -> None:
    store, model = built
    requirements, user = asked(model)
    environment = store.find(requirements, user)
    assert environment is not None
    environment.python.unlink()

    assert store.find(requirements, user) is None
    build(store, model)
    assert store.find(requirements, user) is not None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Resolved", "error: No solution found", "  cause: Because a==1"],
         "No solution found: Because a==1"),
        (["  × No solution found:", "  ╰─▶ Because b was not found"],
         "No solution found: Because b was not found"),
        (["Installed 1 package"], ""),
    ],
)  # fmt: skip
def test_the_cause_of_a_failure_is_one_line(lines: list[str], expected: str) -> None:
    assert cause(lines) == expected


def test_threads_that_begin_to_use_an_environment_together_take_one_lock(
    store: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    both = threading.Barrier(2)

    def open_slowly(file: Path) -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # returns early only if both threads get here
        opened.append(open_lock(file))
        return opened[-1]

    monkeypatch.setattr(stores, "open_lock", open_slowly)
    threads = [threading.Thread(target=store._hold, args=("abc",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert opened == list(store._held.values())


def test_a_file_system_without_locks_costs_no_descriptors(
    store: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def note(file: Path) -> int:
        opened.append(open_lock(file))
        return opened[-1]

    def refuse(descriptor: int, *, shared: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(stores, "open_lock", note)
    monkeypatch.setattr(stores, "try_lock", refuse)
    store._hold("abc")

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def sleeping_uv() -> Uv:
    uv = Uv()
    uv._program = "sh"
    return uv


def is_gone(pid: int) -> bool:
    """Whether a process has ended and been reaped."""
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_cancelled_command_is_not_reaped_before_its_group_is_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv, signal_group, reaped = sleeping_uv(), os.killpg, []

    def end_first(pid: int, number: int) -> None:
        signal_group(pid, number)  # the command ends just before the signal that is under test
        with contextlib.suppress(AssertionError):
            until(lambda: is_gone(pid), seconds=0.3)
        reaped.append(is_gone(pid))

    monkeypatch.setattr(os, "killpg", end_first)
    threading.Thread(target=lambda: (until(lambda: uv._process), uv.cancel())).start()

    with pytest.raises(UvFailed, match="the build was cancelled"):
        uv.run("-c", "exec sleep 60", folder=tmp_path)
    until(lambda: reaped)
    assert reaped == [False]
    uv.cancel()  # nothing is left to signal
    assert reaped == [False]


def test_a_command_whose_output_cannot_be_shown_is_ended(tmp_path: Path) -> None:
    uv, pids = sleeping_uv(), []

    def fail(done: int, total: int) -> None:
        assert uv._process is not None
        pids.append(uv._process.pid)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        uv.run("-c", "echo 'Downloading x (1.0MiB)' >&2; exec sleep 60", folder=tmp_path, on_bytes=fail)
    assert is_gone(pids[0])


def test_odd_output_of_a_build_is_no_download(tmp_path: Path) -> None:
    assert (
        sleeping_uv().run("-c", "echo 'Downloading x (1.2.3MiB)' >&2; echo out", folder=tmp_path) == "out\n"
    )
