"""Ensembles: models that are run by sending requests to other models."""
