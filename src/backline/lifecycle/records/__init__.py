"""What outlives a server: labels and the audit log."""
