"""Networks, one file per family. Each takes the classes and the image's shape, so that one YAML file adds a model."""
