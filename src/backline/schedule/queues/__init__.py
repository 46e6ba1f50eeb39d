"""Queues: which requests wait, and which is next."""
