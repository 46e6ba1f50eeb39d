"""Changes to a model while it serves, by files and by requests; 200 in a row are about a team's year."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from backline_client.client.aio import AsyncClient
from backline_client.values.errors import BacklineError
from support import models
from under_load.constant_load import MODEL
from under_load.stores import Store
from under_load.timeline import Timeline

#: Timeout in seconds for a change to take effect.
PATIENCE = 20.0
CONFIGURATION = """
name: "add"
max_batch_size: 8
version_policy {{ latest {{ num_versions: 3 }} }}
instance_group [ {{ count: {instances} }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
"""


def network(constant: float) -> bytes:
    """A network that adds `constant`."""
    with TemporaryDirectory() as folder:
        return models.add1(Path(folder), constant=constant).read_bytes()


@dataclass
class Deployment:
    """The model `add` in a store, and the answers it may give."""

    store: Store
    client: AsyncClient = field(init=False)
    timeline: Timeline = field(default_factory=Timeline)
    #: The constants of the existing versions, oldest first.
    constants: dict[int, float] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    instances: int = 1
    threads: int = 1
    _generations: int = 0

    def lay_out(self) -> None:
        """The state before the first change: two versions."""
        self._configure()
        for version in (1, 2):
            constant = self._new_constant()
            self.constants[version] = constant
            self.store.put(f"{MODEL}/{version}/model.onnx", network(constant))
        self.timeline.begin("", self.constants[2], 0)

    async def label_first(self) -> None:
        """Sets the labels that the load addresses."""
        for label, version in (("stable", 1), ("canary", 2)):
            await self.client.set_label(MODEL, label, str(version))
            self.labels[label] = version
            self.timeline.begin(label, self.constants[version], 0)
        # A request without a version goes to the label "stable".
        self.timeline.begin("", self.constants[1], 0)
        self.timeline.settle("", self.constants[1], time.monotonic())

    async def new_version(self) -> None:
        version, constant = max(self.constants) + 1, self._new_constant()
        self.constants[version] = constant
        self.store.put(f"{MODEL}/{version}/model.onnx", network(constant))
        await self._until(lambda: self._answers(str(version), constant), f"version {version} answers")

    async def replaced_file(self) -> None:
        version, constant = self.labels["canary"], self._new_constant()
        targets = [label for label, labelled in self.labels.items() if labelled == version]
        targets += [""] if self.labels["stable"] == version else []
        for target in targets:
            self.timeline.begin(target, constant, time.monotonic())
        self.constants[version] = constant
        self.store.put(f"{MODEL}/{version}/model.onnx", network(constant))
        await self._until(
            lambda: self._answers(str(version), constant), f"the new file of version {version} answers"
        )
        for target in targets:
            self.timeline.settle(target, constant, time.monotonic())

    async def changed_instances(self) -> None:
        self.instances = 3 - self.instances
        self._configure()

        async def seen() -> bool:
            config = await self.client.model(MODEL, str(self.labels["canary"])).config()
            return sum(group["count"] for group in config["instance_group"]) == self.instances

        await self._until(seen, f"{self.instances} instances")

    async def changed_threads(self) -> None:
        """Changes a setting that reloads every version."""
        self.threads = 3 - self.threads
        self._configure()

        async def seen() -> bool:
            config = await self.client.model(MODEL, str(self.labels["canary"])).config()
            return config["parameters"]["intra_op_thread_count"]["string_value"] == str(self.threads)

        await self._until(seen, f"{self.threads} threads")

    async def moved_label(self, label: str) -> None:
        """Moves a label to the newest version, or back by one."""
        versions = sorted(self.constants)[-3:]
        before = self.labels[label]
        version = versions[-1] if before != versions[-1] else versions[-2]
        targets = [label, ""] if label == "stable" else [label]
        for target in targets:
            self.timeline.begin(target, self.constants[version], time.monotonic())
        await self.client.set_label(MODEL, label, str(version), expected=str(before))
        self.labels[label] = version
        for target in targets:
            self.timeline.settle(target, self.constants[version], time.monotonic())

    async def failed_load(self) -> None:
        """Adds a broken newest version, which must fail with a reason and affect no other; removes it."""
        version = max(self.constants) + 1
        self.store.put(f"{MODEL}/{version}/model.onnx", b"not a network, whatever its name says")

        async def failed() -> bool:
            return any(
                entry.version == str(version) and entry.state == "UNAVAILABLE" and entry.reason
                for entry in await self._entries()
            )

        await self._until(failed, f"version {version} has failed and says why")
        self.store.remove_folder(f"{MODEL}/{version}")

        async def gone() -> bool:
            return all(
                entry.version != str(version) or entry.state == "UNAVAILABLE"
                for entry in await self._entries()
            )

        await self._until(gone, f"version {version} is gone")

    async def removed_old_version(self) -> None:
        """Removes the oldest version without a label."""
        free = [version for version in sorted(self.constants) if version not in self.labels.values()]
        if len(self.constants) < 4 or not free:
            await self.new_version()
            return
        version = free[0]
        self.store.remove_folder(f"{MODEL}/{version}")
        del self.constants[version]

        async def gone() -> bool:
            return all(
                entry.version != str(version) or entry.state != "READY" for entry in await self._entries()
            )

        await self._until(gone, f"version {version} is unloaded")

    def steps(self) -> list[Callable[[], Awaitable[None]]]:
        """One round of changes."""
        return [
            self.new_version,
            lambda: self.moved_label("canary"),
            self.replaced_file,
            lambda: self.moved_label("stable"),
            self.failed_load,
            self.changed_instances,
            self.removed_old_version,
            self.changed_threads,
        ]

    def _configure(self) -> None:
        self.store.put(
            f"{MODEL}/config.pbtxt",
            CONFIGURATION.format(instances=self.instances, threads=self.threads).encode(),
        )

    def _new_constant(self) -> float:
        self._generations += 1
        return float(self._generations)

    async def _entries(self) -> list:
        return [entry for entry in await self.client.models() if entry.name == MODEL]

    async def _answers(self, version: str, constant: float) -> bool:
        try:
            result = await self.client.model(MODEL, version)(np.zeros((1, 16), np.float32))
        except BacklineError:
            return False
        return bool(result["OUTPUT0"][0, 0] == constant)

    async def _until(self, seen: Callable[[], Awaitable[bool]], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not await seen():
            if time.monotonic() > end:
                entries = [(entry.version, entry.state, entry.reason) for entry in await self._entries()]
                raise AssertionError(f"timed out after {PATIENCE:g} s: {what}; the server lists {entries}")
            await asyncio.sleep(0.02)
