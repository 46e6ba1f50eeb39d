"""The handlers that an archive may name without holding them."""
