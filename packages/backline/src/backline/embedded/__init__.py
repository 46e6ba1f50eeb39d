"""The engine inside a user's program, without sockets, and the client's transport to it."""
