"""The remote lane, which serves models by forwarding their requests to other servers."""
