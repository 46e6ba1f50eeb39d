"""Conformance kits: the tests of this project, for the plug-ins of others. They need pytest."""
