"""From files to batches: readers, the Arrow store, its audit, statistics and loader."""
