"""What stands between the body of a request and a handler: `json`, `kserve`, `kservev2`, `body`."""
