"""Chooses one of several equal servers for each request: the policy of the client and of the remote lane."""
