"""The space that a sweep searches, from words to axes."""
