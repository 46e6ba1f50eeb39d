"""Versions of a model: in the path, left out, unknown, and never mixed up."""

from __future__ import annotations

from oip_conformance import specification as spec
from oip_conformance.row import Area, Level
from oip_conformance.target import Target, equal, key, ok, outputs, refused, same
from oip_conformance.tensors import Tensor

MUST, SHOULD, OBSERVED = Level
area = Area("versions", "required")
INPUT = Tensor("INPUT", "INT32", (2,), [10, 20])


def _served(t: Target, version: str | None) -> Tensor:
    found = outputs(t.infer("versioned", INPUT, version=version))
    return found[t.output_names("versioned")[0]]


@area.row("first", MUST, spec.VERSION_OPTIONAL, "versioned")
def first(t: Target) -> None:
    """The version in the path is the one that answers, version 1 here."""
    same(_served(t, "1"), Tensor("OUTPUT", "INT32", (2,), [11, 21]))


@area.row("second", MUST, spec.VERSION_OPTIONAL, "versioned")
def second(t: Target) -> None:
    """The version in the path is the one that answers, version 2 here."""
    same(_served(t, "2"), Tensor("OUTPUT", "INT32", (2,), [12, 22]))


@area.row("none", OBSERVED, spec.VERSION_POLICY, "versioned")
def none(t: Target) -> str:
    """A path without a version: which of two answers, or an error."""
    answer = t.infer("versioned", INPUT)
    if answer.status >= 400:
        return f"refused with {answer.status}"
    return f"version {outputs(answer)[t.output_names('versioned')[0]].data[0] - 10}"


@area.row("named", SHOULD, spec.RESPONSE_MODEL_VERSION, "versioned")
def named(t: Target) -> None:
    """The answer of a server with versions names the version that answered, if the request did not."""
    answer = ok(t.infer("versioned", INPUT))
    served = outputs(answer)[t.output_names("versioned")[0]].data[0] - 10
    equal(key(answer.json(), "model_version", str), str(served), "model_version")


@area.row("unknown", MUST, spec.INFER_ERROR, "versioned")
def unknown(t: Target) -> None:
    """A version that does not exist is an error, not another version's answer."""
    refused(t.infer("versioned", INPUT, version="99"))


@area.row("unknown.status", OBSERVED, spec.INFER_ERROR, "versioned")
def unknown_status(t: Target) -> str:
    """The status of a request to a version that does not exist."""
    return f"status {t.infer('versioned', INPUT, version='99').status}"


@area.row("not-number", OBSERVED, spec.VERSION_OPTIONAL, "versioned")
def not_number(t: Target) -> str:
    """A version that is a word."""
    return f"status {t.infer('versioned', INPUT, version='latest').status}"
