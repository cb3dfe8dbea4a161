"""A separate store for each test that changes one."""

from monitoring_pipeline_tests.sources.conftest import empty_store, store

__all__ = ["empty_store", "store"]
