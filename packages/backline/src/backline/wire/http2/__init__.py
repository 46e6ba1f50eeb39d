"""HTTP/2 (RFC 9113), with hpack for header compression."""

#: The first bytes of every connection (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
