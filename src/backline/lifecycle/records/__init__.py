"""What outlives a server: its labels and its audit log."""
