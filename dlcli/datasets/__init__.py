"""Data sets: readers (one file each), the cache of decoded data, augmentation, and the sources a loop draws from."""
