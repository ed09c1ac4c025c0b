"""What all tests stand on."""

from collections.abc import Iterator

import pytest

from zoo.proposals import FOLDER_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def _proposals_stay_out_of_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that a test starts inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("proposals")))
        yield
