"""The settings that a model's configuration may contain, as plain data types."""
