"""The HTTP service: thin routes over `inference.serving`, and the connections of its server."""

from app.api.application import create_app

__all__ = ["create_app"]
