"""A dialect of Backline: further routes of the server."""

from backline.dialects.plugin import DialectPlugin

# This module is imported to list the plug-in: keep further imports in dialect.py.
PLUGIN = DialectPlugin(
    name="NAME",
    summary="The inputs of a model at /NAME/MODEL",
    target="NAME.dialect:NameDialect",
    routes=("GET /NAME/{}",),
    api_version=1,
)
