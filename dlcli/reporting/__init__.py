"""Readers of the events: terminal, plain lines, JSON, pictures and Weights & Biases."""
