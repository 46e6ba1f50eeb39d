"""Real parts for the tests: small ONNX models, server processes, object stores, clients."""
