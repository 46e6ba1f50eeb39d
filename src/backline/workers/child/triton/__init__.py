"""Triton's Python backend: models with a class TritonPythonModel, and what they import as `triton_python_backend_utils`.

`model` runs such a class as a WorkerModel, `api` is what it imports, the other modules are one part of that each. Names, signatures and
texts are those of Triton's Python backend (python_backend: src/pb_stub.cc, src/resources/triton_python_backend_utils.py), so that a model
runs unchanged.
"""
