"""The command line and the models of the server that all of these scenarios ask."""

from __future__ import annotations

from scenarios.servers import Setup

#: The models of probes/ that are served from the start; the others are loaded, or fail to, by request.
_PROBES = ("types", "fixed", "text", "words", "tallied")
_STUDIO = (
    *("gain", "peak", "frames", "meter", "analyse", "mastering", "lengths"),
    *("fingerprint", "disk", "warm", "plays", "genre", "release"),
)

DROP_IN = Setup(
    (
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in (*_STUDIO, *_PROBES)),
        "--cache-config=local,size=4194304",
        "--rate-limit=execution_count",
        "--rate-limit-resource=disk:1",
        "--http-header-forward-pattern=forwarded-.*",
        "--grpc-header-forward-pattern=forwarded-.*",
    ),
    {},
    ("studio", "probes"),
    drop_in=True,
)
