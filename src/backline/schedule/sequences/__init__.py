"""Sequences of requests with the same id: their order, places and states."""
