"""Authorisation: decides who may send which requests."""
