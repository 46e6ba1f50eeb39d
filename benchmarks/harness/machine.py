"""Describes the machine and the versions of tools, for the head of a report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from harness import perf_analyzer


def processor() -> str:
    """Returns the processor's name as reported by the kernel."""
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    )
    return found[1] if found else platform.processor() or platform.machine()


def tool_version(command: list[str], pattern: str) -> str:
    """Returns the first match of `pattern` in the command's output, or "missing" if the command is not
    installed.
    """
    if shutil.which(command[0]) is None:
        return "missing"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown version"


def machine() -> dict[str, str]:
    """Returns the description of this machine as names and values to print."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "wrk": tool_version(["wrk", "-v"], r"wrk \S*?(\d[\w.+-]*)"),
        "h2load": tool_version(["h2load", "--version"], r"nghttp2/(\S+)"),
        "perf_analyzer": perf_analyzer.installed_version(),
    }
