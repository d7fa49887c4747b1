from __future__ import annotations

from urllib.parse import quote

from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from chatmill.errors import (
    BY_CODE,
    DOMAIN,
    ChatmillError,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from chatmill.runtime import status

plain = st.text(st.characters(codec="utf-8"), max_size=40)
reasons = st.from_regex(r"[A-Z][A-Z0-9_]{0,30}[A-Z0-9]", fullmatch=True)


@given(st.sampled_from(list(BY_CODE.values())), plain, reasons, st.dictionaries(plain, plain, max_size=3))
def test_what_is_common_to_all_errors_survives(
    cls: type[ChatmillError], message: str, reason: str, metadata: dict[str, str]
) -> None:
    back = status.from_status(status.to_status(cls(message, reason=reason, metadata=metadata)))
    assert type(back) is cls
    assert (back.message, back.reason, back.metadata) == (message, reason, metadata)


@given(st.lists(st.tuples(plain, plain), max_size=5))
def test_violations_survive(pairs: list[tuple[str, str]]) -> None:
    violations = [FieldViolation(*pair) for pair in pairs]
    back = status.from_status(status.to_status(InvalidArgument("wrong", violations=violations)))
    assert isinstance(back, InvalidArgument)
    assert list(back.violations) == violations


@given(st.floats(0, 1e6))
def test_retry_after_survives_to_the_microsecond(seconds: float) -> None:
    for error in (ResourceExhausted("full", retry_after=seconds, quota="q"), Unavailable("gone", retry_after=seconds)):
        back = status.from_status(status.to_status(error))
        assert isinstance(back, ResourceExhausted | Unavailable)
        assert back.retry_after is not None
        assert abs(back.retry_after - seconds) < 1e-6


def test_error_info_names_domain_and_reason_once() -> None:
    details = status.to_status(NotFound("no such model", reason="MODEL_NOT_FOUND")).details
    infos = [detail for detail in details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.reason, info.domain) == ("MODEL_NOT_FOUND", DOMAIN)


@given(
    st.text(st.sampled_from("a模\ud800%\n 😀"), max_size=3000),
    st.lists(st.text(st.sampled_from("ab模\udfff"), max_size=900), max_size=60),
)
def test_a_status_always_fits_the_trailers_and_says_what_was_left_out(message: str, fields: list[str]) -> None:
    error = InvalidArgument(
        message, violations=[FieldViolation(field, field) for field in fields], metadata={"m": message}
    )
    made = status.to_status(error)
    assert made.ByteSize() <= 4000
    assert len(quote(made.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")) <= status.MESSAGE_BYTES + 9
    back = status.from_status(made)
    assert isinstance(back, InvalidArgument)
    assert len(back.violations) + int(back.metadata.get("violations_omitted", 0)) == len(fields)


def test_codes_that_we_never_send_become_the_nearest_class() -> None:
    def of(code: int) -> ChatmillError:
        return status.from_status(status_pb2.Status(code=code, message="m"))

    assert isinstance(of(11), InvalidArgument)  # OUT_OF_RANGE
    assert of(11).reason == "OUT_OF_RANGE"
    assert of(12).reason == "UNIMPLEMENTED"
    assert isinstance(of(2), Internal)  # UNKNOWN
    assert isinstance(of(999), Internal)
