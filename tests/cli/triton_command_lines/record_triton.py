"""Records in triton_2_51.json what Triton makes of the command lines of cases.py, and the names of its
options: `python record_triton.py ENVIRONMENT`.

ENVIRONMENT is a Python environment with `nvidia-pytriton==0.7.0` and `numpy<2`, for the Python version that
runs this. Answers already in the file are kept: remove it to record all of them again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
RECORDS = HERE / "triton_2_51.json"
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
from cases import ENDING, REFUSED, SERVING  # noqa: E402
from places import Places  # noqa: E402

from support.server import free_ports  # noqa: E402

#: The lines that scripts look for.
LINES = re.compile(
    r"(Started (?:HTTPService|GRPCInferenceService|Metrics Service) at [\d.]+|successfully loaded '\w+'"
    r"|failed to load '\w+' version \d+|Poll failed for model directory '\w+'"
    r"|\| \w+ +\| 1 +\| (?:READY|UNAVAILABLE)|Signal \(\d+\) received\.)"
)


def main(environment: Path) -> None:
    (root,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
    folder = Path(tempfile.mkdtemp(prefix="triton-"))
    backends = folder / "backends"
    shutil.copytree(root / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(root / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    program = str(root / "bin" / "tritonserver")
    command = [program, f"--backend-directory={backends}", f"--cache-directory={root / 'caches'}"]
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{root.parents[1] / 'nvidia_pytriton.libs'}"
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries,
    }
    recorded = json.loads(RECORDS.read_text()) if RECORDS.exists() else {"lines": {}}
    shown = subprocess.run([program, "--help"], env=variables, capture_output=True, text=True, check=False)
    recorded["options"] = re.findall(r"^  --([a-z0-9-]+)", shown.stderr + shown.stdout, re.MULTILINE)
    try:
        with Places(folder) as places:
            for name, arguments in {**REFUSED, **ENDING, **SERVING}.items():
                if name not in recorded["lines"]:
                    recorded["lines"][name] = _run(command, places.fill(arguments), variables, places)
                    print(name, recorded["lines"][name], flush=True)
                    RECORDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    finally:
        shutil.rmtree(folder)


def _run(command: list[str], arguments: list[str], variables: dict[str, str], places: Places) -> dict:
    """The exit status, the status of the health check once the server is up, and what it printed."""
    port, *others = free_ports(3)
    ports = [f"--http-port={port}", f"--grpc-port={others[0]}", f"--metrics-port={others[1]}"]
    given = [one for one in ports if not any(a.startswith(one.partition("=")[0]) for a in arguments)]
    process = subprocess.Popen(
        [*command, *given, *arguments],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    health = None
    end = time.monotonic() + 15
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2) as answer:
                health = answer.status
                break
        except urllib.error.HTTPError as error:
            health = error.code
            break
        except OSError:
            time.sleep(0.1)
    if process.poll() is None:
        process.terminate()
    try:
        printed, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    lines = [found.replace(" ", "") if found[0] == "|" else found for found in LINES.findall(printed)]
    text = ""
    named = [line for line in printed.splitlines() if line.startswith(f"{command[0]}: ")]
    if named:
        text = named[0].replace(command[0], "{program}")
    elif process.returncode:
        unwanted = re.compile(r"^([IW]\d{4} |\t|$)|Non-graceful")
        last = [line for line in printed.splitlines() if not unwanted.search(line)]
        text = places.hide(
            "\n".join(last[-2:] if last[-2:][0].startswith("Bad option") else last[-1:])
        ).strip()
    return {"exit": process.returncode, "health": health, "lines": sorted(set(lines)), "text": text}


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
