"""`forecache demo`: the whole system at work on a generated table, every step checked."""

from app.demo.show import run_demo

__all__ = ["run_demo"]
