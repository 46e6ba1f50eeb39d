"""HTTP/1.1 (RFC 9112) on httptools: one connection, its requests and answers."""
