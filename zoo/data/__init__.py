"""Files in, tables and batches out: readers and writers, augmentation, and the one DataModule."""
