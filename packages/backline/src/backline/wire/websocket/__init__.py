"""WebSocket (RFC 6455): the handshake, the frames, and a connection after its handshake."""
