"""The response cache: where responses are kept, under which key, and the queue that looks there first."""
