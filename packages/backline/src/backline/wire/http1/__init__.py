"""HTTP/1.1 (RFC 9112), with the parser of httptools."""
