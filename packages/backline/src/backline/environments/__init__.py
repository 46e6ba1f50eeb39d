"""Environments of Python models, built by uv. Models with equal requirements share an environment."""
