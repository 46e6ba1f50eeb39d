"""Access to the operating system: memory, cores, file locks, folders, suspension."""
