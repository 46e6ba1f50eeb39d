"""Triton's Python backend: models with a class TritonPythonModel, and the module
`triton_python_backend_utils` that they import.

`model` runs such a class as a WorkerModel, `importable/` holds the module, and the other files implement it.
Names, signatures and error texts are those of Triton's Python backend (python_backend: src/pb_stub.cc,
src/resources/triton_python_backend_utils.py), so that models run unchanged.
"""
