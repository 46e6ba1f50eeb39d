"""The server's log: settings, formats, and the thread that writes it."""
