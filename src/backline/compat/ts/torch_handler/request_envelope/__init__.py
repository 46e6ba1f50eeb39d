"""Envelopes between a request's body and a handler: `json`, `kserve`, `kservev2`, `body`."""
