"""Requests that become requests to other models."""
