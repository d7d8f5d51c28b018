"""The handlers of the relay: which one gets an event, and what an alert says."""

from __future__ import annotations

import argparse
import time

import pytest

from reference_server.relay import notification
from reference_server.relay.event import ERROR_LENGTH_MAX, Event, HandlerError, error_text
from reference_server.relay.handlers import HANDLERS, add_arguments, handler_of, make_handlers


def event(event_type: str = "alert.drift", **payload: object) -> Event:
    return Event(
        event_id=7,
        aggregate_type="drift",
        aggregate_id="1",
        event_type=event_type,
        payload=payload,
        dedup_key="drift:1",
        attempts=1,
        lease_token=1,
        lease_ends_s=time.monotonic() + 30,
    )


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_a_type_in_full_wins_over_its_first_word() -> None:
    def broad(event: Event) -> None:
        raise AssertionError(event)

    def exact(event: Event) -> None:
        raise AssertionError(event)

    handlers = {"alert.*": broad, "alert.drift": exact}
    assert handler_of(handlers, "alert.drift") is exact
    assert handler_of(handlers, "alert.other") is broad
    with pytest.raises(KeyError):
        handler_of(handlers, "withdrawal.requested")


def test_every_registered_handler_can_be_made() -> None:
    assert set(make_handlers(options())) <= set(HANDLERS)
    assert {"alert.*", "measure.*", "notice.*"} <= set(make_handlers(options()))


@pytest.mark.parametrize(("event_type", "level"), [("alert.drift", "ERROR"), ("notice.paid", "INFO")])
def test_what_no_service_gets_goes_to_the_log(
    caplog: pytest.LogCaptureFixture, event_type: str, level: str
) -> None:
    caplog.set_level("INFO", logger=notification.log.name)
    notification.handler(options())(event(event_type, title="Drift", text="5 USDC short"))
    (line,) = caplog.records
    assert (line.levelname, line.getMessage()) == (level, "Drift: 5 USDC short, [drift:1]")


def test_a_url_that_names_no_service_is_refused_without_its_password() -> None:
    with pytest.raises(HandlerError, match="URL 2, of 'nowhere'") as error:
        notification.handler(options("--notify", "json://127.0.0.1:9", "--notify", "nowhere://:secret@host"))
    assert "secret" not in str(error.value)


def test_an_alert_says_what_it_knows_and_its_dedup_key() -> None:
    assert notification.wording(event(difference_micro=-5)) == (
        "alert.drift",
        '{"difference_micro": -5}\n[drift:1]',
    )
    assert notification.wording(event(title="Drift", text="5 short")) == ("Drift", "5 short\n[drift:1]")


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("json://h:1/a", "json://h:1/a?+Idempotency-Key=w%3A1%26x"),
        ("jsons://h/a?method=PUT", "jsons://h/a?method=PUT&+Idempotency-Key=w%3A1%26x"),
        ("slack://T/B/C/#channel", "slack://T/B/C/#channel"),
    ],
)
def test_a_webhook_gets_the_dedup_key_as_a_header(url: str, sent: str) -> None:
    assert notification.with_key(url, "w:1&x") == sent


def test_any_error_fits_into_the_outbox() -> None:
    assert error_text(ValueError("a\0b")) == "ValueError: ab"
    assert error_text(ValueError("\ud800")) == "ValueError: ?"
    assert len(error_text(ValueError("x" * 10**6))) == ERROR_LENGTH_MAX
