"""The HTTP service over fakes, for the tests of what clients send."""

from tests.integration.test_api import http, it  # noqa: F401 - fixtures
