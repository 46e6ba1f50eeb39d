"""Reads remote repositories (object stores, the hub, archives over HTTP) through a local cache."""
