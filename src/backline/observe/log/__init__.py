"""The server's log: what it holds, how its lines look, and who writes them."""
