"""Dates written and read in the horses' own way, against RQ's."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rq.utils import str_to_date, utcformat

from rq_pooled.horse.dates import read_date, write_date

_ZONES = st.sampled_from([None, timezone.utc, timezone(timedelta(hours=-5, minutes=-30))])


@given(st.datetimes(timezones=st.none()), _ZONES)
def test_dates_are_written_as_rq_writes_them(date: datetime, zone: timezone | None) -> None:
    """Every date, of whatever year and zone, is written as RQ writes it."""
    date = date.replace(tzinfo=zone)
    assert write_date(date) == utcformat(date)


@given(st.datetimes(timezones=st.none(), min_value=datetime(1000, 1, 1)))
def test_dates_are_read_as_rq_reads_them(date: datetime) -> None:
    """Whatever RQ writes is read as RQ reads it, zone included, from bytes and from text."""
    for text in (utcformat(date), utcformat(date.replace(microsecond=0)).replace(".000000", "")):
        for form in (text, text.encode()):
            ours = read_date(form)
            assert (ours, ours.tzinfo) == (str_to_date(form), timezone.utc)


@given(st.text(max_size=30) | st.binary(max_size=30) | st.from_regex(rb"2026[-W0-9T:.,Z+]{22}Z", fullmatch=True))
@example(b"2026-11-21 09:42:00.000000Z")
@example(b"2026-W47-6T09:42:00.000000Z"[:27])
@example(b"20261121T094200.000000+00Z ")
@example(b"2026-02-30T09:42:00.000000Z")
@example(b"")
def test_what_rq_refuses_is_refused(text: str | bytes) -> None:
    """What RQ refuses to read is refused with RQ's own error, although Python could read it."""
    try:
        expected = str_to_date(text)
    except Exception as error:  # noqa: BLE001 - whichever it is, ours has to be it, too
        with pytest.raises(type(error)):
            read_date(text)
    else:
        assert read_date(text) == expected
