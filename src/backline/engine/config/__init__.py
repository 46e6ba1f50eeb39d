"""What may be configured of a model, as plain values."""
