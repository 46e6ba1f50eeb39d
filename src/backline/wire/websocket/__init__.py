"""WebSocket (RFC 6455): the handshake, frames, and one connection after its handshake."""
