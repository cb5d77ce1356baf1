"""Data sets: readers (one file each), the cache of decoded images, augmentation, and the sources a loop draws from."""
