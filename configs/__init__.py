"""Every recipe as YAML; read with ``dogmed.config.recipe(name)``."""

if not __name__.startswith("dogmed."):
    raise ImportError("import this package as dogmed.configs, not as configs")
