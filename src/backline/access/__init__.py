"""Who may do what: pure policies, and the table from route to scope that they are applied to."""
