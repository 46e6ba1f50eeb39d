"""The server's log: its settings, its formats, and the thread that writes it."""
