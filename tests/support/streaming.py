"""Repositories of decoupled models, all built in, so that they need no model files."""

from __future__ import annotations

from pathlib import Path

REPEAT = """
backend: "repeat"
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
SQUARE = """
backend: "square"
model_transaction_policy { decoupled: true }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
#: The inputs of an ensemble over repeat.
ENSEMBLE_INPUTS = """
input [
  { name: "VALUES" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAYS" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "NEXT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
#: Its first step, up to the output map.
ENSEMBLE_STEP = """
  step { model_name: "repeat" model_version: -1
    input_map { key: "IN" value: "VALUES" } input_map { key: "DELAY" value: "DELAYS" }
    input_map { key: "WAIT" value: "NEXT" }
"""
#: One response per request.
ECHO = """
backend: "identity"
input [ { name: "IN" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ -1 ] } ]
"""


def put_models(repository: Path) -> Path:
    """Adds the models repeat, square and echo."""
    for name, text in (("repeat", REPEAT), ("square", SQUARE), ("echo", ECHO)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
    return repository
