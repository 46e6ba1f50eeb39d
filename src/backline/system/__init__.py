"""Access to the operating system: memory, cores, file locks, folders, and suspension of processes."""
