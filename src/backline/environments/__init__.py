"""Environments of models: what one asks for beside its file, built by uv, kept by what it asks for."""
