"""One trial of a model file (load, prove, measure, warm up), in a process that ends with the trial."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

from backline.engine.errors import BacklineError
from backline.lifecycle.loading.isolation.messages import (
    LONGEST_TEXT,
    Began,
    Passed,
    Report,
    TrialJob,
    TrialRefused,
)
from backline.lifecycle.loading.loader import load
from backline.lifecycle.loading.measurement_file import device_names
from backline.lifecycle.loading.version_load import warm_up_version
from backline.lifecycle.loading.warm_up import warm_up_items
from backline.system.cores import pinned
from backline.system.memory import fill_blocks

#: The byte that fills new and freed memory. A damaged file that makes a runtime read such memory should crash
#: the trial; with the zeros of a new process it might pass, and crash the server later.
_FILLING = 0x5A


def run_trial(job: TrialJob, report: Callable[[Report], None]) -> None:
    """Does with a file what a load in the server would do, and reports each phase.

    The last report is a Passed or TrialRefused. Each warm-up sample runs once, whatever its `count`.
    """
    config = replace(job.config, warm_up=tuple(replace(sample, count=1) for sample in job.config.warm_up))

    def on_phase(phase: str) -> None:
        # Not during the trial runs, which are timed.
        fill_blocks(0 if phase == "probe" else _FILLING)
        if phase in ("load", "probe", "warm-up"):
            report(Began(phase))  # type: ignore[arg-type]

    try:
        with pinned(config.cpus):
            samples = warm_up_items(config, job.model_folder)
            loaded = load(job.path, config, None, on_phase, None, job.options, samples)
            on_phase("warm-up")
            warm_up_version(config, loaded, job.path, job.model_folder, job.recorded)
            report(Passed(loaded.measured, device_names(loaded.placed)))
    except BacklineError as error:
        report(TrialRefused(type(error).__name__, error.message[:LONGEST_TEXT]))
    except MemoryError:
        report(TrialRefused("", "there is not enough memory to load it"))
    except Exception as error:
        traceback.print_exc()
        report(TrialRefused("", f"{type(error).__name__}: {error}"[:LONGEST_TEXT]))
