"""Authorisation: pure policies, and the scope that each route requires."""
