"""One load of a version: from its files to a model that has answered its first requests, and the queue in front of it."""
