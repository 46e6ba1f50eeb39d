"""Remote repositories: object stores, hubs and archives over HTTP, and the local cache of their files."""
