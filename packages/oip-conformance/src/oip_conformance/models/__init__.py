"""Writes the suite's models in the forms that servers load."""
