"""A task is a stream of structures, a head and a loss."""
