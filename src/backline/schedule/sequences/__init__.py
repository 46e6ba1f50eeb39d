"""Requests that belong together: their order, their places and their state."""
