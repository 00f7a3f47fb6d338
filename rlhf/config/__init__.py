"""A run's configuration: one typed recipe, read from YAML with ``key=value`` overrides, refused early if impossible."""
