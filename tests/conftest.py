"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from zoo.proposals import FOLDER_VARIABLE

# No time limits: whether a test passes must not depend on how fast or how busy the machine is.
settings.register_profile("zoo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zoo")


@pytest.fixture(scope="session", autouse=True)
def _proposals_stay_out_of_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that a test starts inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("proposals")))
        yield
