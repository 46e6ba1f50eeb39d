"""Environments of Python models: what a model requires, built by uv and shared by equal requirements."""
