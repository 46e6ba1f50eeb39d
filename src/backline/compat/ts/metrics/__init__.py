"""Metrics that handlers record."""
