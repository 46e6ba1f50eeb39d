"""Models on other machines: the remote lane."""
