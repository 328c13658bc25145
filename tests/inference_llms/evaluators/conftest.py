import pytest

from inference_llms.evaluators.guard import check_guard
from utils.errors import UserError


@pytest.fixture
def guarded() -> None:
    """Skip a test if this machine cannot guard programs."""
    try:
        check_guard()
    except UserError as error:
        pytest.skip(str(error))
