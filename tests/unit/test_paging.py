"""Pages of lists, whatever the service."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatmill import paging
from chatmill.errors import InvalidArgument


@dataclass
class Request:
    page_token: str = ""


@dataclass
class Response:
    items: list[int]
    next_page_token: str


def test_a_size_is_the_default_the_wish_or_the_largest() -> None:
    assert [paging.size_of(size) for size in (0, 5, 5000)] == [50, 5, 1000]
    assert paging.size_of(0, 20, 100) == 20
    with pytest.raises(InvalidArgument, match="page_size"):
        paging.page(-1, "", "jobs", int)


def test_a_token_fits_only_its_query() -> None:
    _, token = paging.page(1, "", "jobs RUNNING", int).cut([7, 6], lambda number: number)
    assert paging.page(1, token, "jobs RUNNING", int).after == 7
    assert "RUNNING" not in token
    for wrong, query in ((token, "jobs"), ("!", "jobs"), ("YQ", "jobs"), (token[:-2], "jobs RUNNING"), ("é", "jobs")):
        with pytest.raises(InvalidArgument, match="begin without one"):
            paging.page(1, wrong, query, int)
    with pytest.raises(InvalidArgument, match="begin without one"):
        paging.page(1, token, "jobs RUNNING", str)


@given(st.text(max_size=60))
def test_no_text_is_a_token_by_accident(text: str) -> None:
    if text:
        with pytest.raises(InvalidArgument, match="page_token"):
            paging.page(1, text, "jobs", str)


@given(st.integers(1, 7), st.sets(st.integers(0, 40)), st.integers(0, 40))
async def test_pages_leave_nothing_out_and_show_nothing_twice(size: int, numbers: set[int], gone: int) -> None:
    """One item goes while the list is read; all the others are seen exactly once."""
    held, calls = set(numbers), 0

    async def call(request: Request) -> Response:
        nonlocal calls
        calls += 1
        if calls == 2:
            held.discard(gone)
        page = paging.page(size, request.page_token, "numbers", int)
        behind = sorted(n for n in held if page.after is None or n > page.after)
        shown, token = page.cut(behind, lambda number: number)
        assert len(shown) <= size
        return Response(list(shown), token)

    seen = [item async for answer in paging.every(call, Request()) for item in answer.items]
    assert len(seen) == len(set(seen))
    assert numbers - {gone} <= set(seen) <= numbers
