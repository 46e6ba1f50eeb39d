"""The process lane: instances in processes of their own. `pool` is the server's side, `child` the worker's, `protocol` what they say."""
