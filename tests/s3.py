"""An S3 server for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def served_bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket on a free port; the server ends with the block."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            environment.setenv("AWS_ACCESS_KEY_ID", "tests")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "tests")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            for file in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                environment.setenv(file, "/dev/null/none")  # DVC fails on /dev/null itself
            S3FileSystem.clear_instance_cache()  # instances keep the endpoint they were made with
            S3FileSystem().mkdir(name)
            yield f"s3://{name}"
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()
