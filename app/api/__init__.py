"""The HTTP service: thin routes over `inference.serving`, one file per noun."""

from app.api.application import create_app

__all__ = ["create_app"]
