"""The runtimes that load model files."""
