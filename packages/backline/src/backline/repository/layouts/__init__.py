"""Finds models, versions and their files in the repository layouts of Backline and of other servers."""
