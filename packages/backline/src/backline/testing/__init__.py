"""Conformance kits: the checks that Backline's own plug-ins pass, for those of others. They need pytest."""
