"""Functions for handlers and their loader."""
