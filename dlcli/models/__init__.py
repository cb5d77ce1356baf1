"""Networks, one file per family; each takes the classes and the image's shape, so that one YAML adds one."""
