"""The console: a page for browsers, and the routes from which it learns what the server is doing."""
