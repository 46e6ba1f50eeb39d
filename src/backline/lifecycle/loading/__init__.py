"""One load of a version: from its files to a warm model with its queue."""
