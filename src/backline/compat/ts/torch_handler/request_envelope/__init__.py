"""Envelopes, which translate between request bodies and a handler: `json`, `kserve`, `kservev2`, `body`."""
