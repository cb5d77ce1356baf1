"""File formats: one file per format, read into plain columns, texts, pictures or samples."""
