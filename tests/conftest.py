"""Hypothesis: no deadline (machines are shared), and one folder may serve all examples of a test."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tfray",
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tfray")
