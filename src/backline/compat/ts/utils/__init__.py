"""What handlers and their loader share."""
