from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="package")
def running_ray() -> Iterator[None]:
    """Ray on two cores of this machine, started once for all tests here."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
