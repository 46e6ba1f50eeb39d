"""OpenAPI documents (version 3.1) of the server and of each model."""
