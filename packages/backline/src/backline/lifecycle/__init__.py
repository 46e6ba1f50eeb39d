"""Loads, serves, labels and unloads model versions, as repositories and requests demand."""
