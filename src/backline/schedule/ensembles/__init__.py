"""Ensembles: models whose requests become requests to other models."""
