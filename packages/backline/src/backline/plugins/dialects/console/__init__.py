"""The console: a page for browsers, and the routes that tell the page what the server is doing."""
