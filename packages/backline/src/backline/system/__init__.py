"""Access to the operating system: memory, GPUs, cores, files, folders and processes."""
