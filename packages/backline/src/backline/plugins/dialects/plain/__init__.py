"""Plain HTTP: inputs by name as JSON, files or a raw body; outputs as JSON or as a file."""
