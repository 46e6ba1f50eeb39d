"""Repositories of Backline at URLs that begin with NAME://."""

from backline.repository.plugin import RepositoryPlugin

# This module is imported to list the plug-in: keep further imports in files.py.
PLUGIN = RepositoryPlugin(
    name="NAME",
    summary="Models in a database, at NAME:///PATH",
    schemes=("NAME",),
    target="NAME.files:database_files",
    api_version=1,
)
