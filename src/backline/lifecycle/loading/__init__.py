"""Loading a version: from its files to a warmed-up model and its queue."""
