"""Ensembles: requests that fan out into requests to other models."""
