"""What the operating system provides to this process: memory, cores, folders, time."""
