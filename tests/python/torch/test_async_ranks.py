"""Saves beside the training on two ranks: one launch, its checks one test each."""

import pytest
from launches import Launch, checks_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return Launch(2, "async_ranks.py", tmp_path_factory.mktemp("async") / "ranks")


@pytest.mark.parametrize("check", checks_of("async_ranks.py"))
def test_two_ranks(ranks, check):
    ranks.result(check)
