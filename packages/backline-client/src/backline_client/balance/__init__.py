"""Chooses one of several equivalent servers for each request, for the client and for remote models."""
