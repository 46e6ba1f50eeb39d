"""What the operating system gives this process: memory, cores, folders, time on the processor."""
