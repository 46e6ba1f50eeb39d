"""Which packages an environment on top of the server's has to add."""

from __future__ import annotations

from backline.environments.on_top import lacking

THERE = {"torch": "2.9.0", "numpy": "2.4.6", "six": "1.17.0", "typing-extensions": "4.16.0"}
RESOLVED = """
cuda-toolkit==13.2.2      # via torch
extra[more]==1.0          # via -r requirements.txt
jinja2==3.1.6             # via extra, torch
markupsafe==3.0.4         # via jinja2
numpy==2.4.6              # via -r -, torch
nvidia-nccl==2.30.7       # via cuda-toolkit
./wheels/own.whl          # via -r requirements.txt
ownneeds==0.1             # via own
six==1.16.0               # via -r requirements.txt
torch==2.9.0              # via -r requirements.txt
typing_extensions==4.16.0  # via -c limits.txt, extra
"""


def test_only_what_the_server_lacks_or_has_in_another_version_is_installed() -> None:
    assert lacking(RESOLVED, THERE) == [
        "./wheels/own.whl",
        "extra[more]==1.0",
        "ownneeds==0.1",
        "six==1.16.0",
        "jinja2==3.1.6",
        "markupsafe==3.0.4",
    ]
