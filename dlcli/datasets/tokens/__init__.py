"""Tokenizers: characters, words, byte pairs, and those of published networks."""
