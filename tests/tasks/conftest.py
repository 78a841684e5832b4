"""A Prefect server and a result store of the tests' own."""

from collections.abc import Iterator

import pytest
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Flows run against a temporary database; results go to a temporary folder and stay there."""
    results = tmp_path_factory.mktemp("results")
    settings = {
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_LOCAL_STORAGE_PATH: results,
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=None):
        yield
