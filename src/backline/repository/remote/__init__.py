"""Repositories elsewhere: object stores, hubs, archives over HTTP, and the cache on local disk that their files go through."""
