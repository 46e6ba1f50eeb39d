"""What people see of the server: metrics and the log. Nothing here is called on the hot path; metrics are read from counters."""
