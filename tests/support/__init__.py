"""Real parts for the tests: small ONNX models, and a server process."""
