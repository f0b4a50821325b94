"""What all tests of several ranks share."""

import pytest


@pytest.fixture(scope="session")
def torch_extensions(tmp_path_factory):
    """DeepSpeed's compiled operation, built once; and one thread a rank, for the ranks share two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
