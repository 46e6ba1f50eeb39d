"""Schemes of remote repositories."""
