"""Functions that handlers import."""
