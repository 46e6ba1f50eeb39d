"""Finds models, versions and their files in the layouts of repositories, Backline's and other servers'."""
