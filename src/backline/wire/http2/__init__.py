"""HTTP/2 (RFC 9113), with hpack for header compression."""
