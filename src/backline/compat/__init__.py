"""Packages that models for other servers import. A worker uses these if the real ones are not installed."""
