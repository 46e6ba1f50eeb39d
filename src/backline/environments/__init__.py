"""Environments of Python models, built by uv; models with equal requirements share one."""
