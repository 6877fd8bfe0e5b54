"""The gateway: the only room that knows HTTP, OpenAI's JSON, YAML and Prometheus."""

__version__ = "0.1.0"
