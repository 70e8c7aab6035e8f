"""Four ranks, as four_ranks.py has them do it."""

import pytest
from launches import Launch, checks_of


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return Launch(4, "four_ranks.py", tmp_path_factory.mktemp("ranks") / "four")


@pytest.mark.parametrize("check", checks_of("four_ranks.py"))
def test_four_ranks(four, check):
    four.result(check)
