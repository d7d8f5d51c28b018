"""The handler of alerts, and of notices for users: to people, by the services that apprise knows by URL.

The title is the payload's `title`, else the event type; the text is the payload's `text`, else the payload,
and always ends with the dedup key, by which people and inboxes know a repetition. A webhook (json, xml or
form) has it as the header Idempotency-Key too. An event goes to all services, and counts as delivered when
all have it: when one fails, all get it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from urllib.parse import quote, urlsplit, urlunsplit

from reference_server.relay.event import Event, Handler, HandlerError, NotDelivered

VARIABLE = "SEATRIAL_NOTIFY"
WEBHOOKS = frozenset({"json", "jsons", "xml", "xmls", "form", "forms"})

log = logging.getLogger("reference_server.relay.notification")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option that names the services."""
    parser.add_argument(
        "--notify",
        metavar="URL",
        action="append",
        default=os.environ.get(VARIABLE, "").split(),
        help="where alerts and notices go, as an apprise URL; may be repeated"
        f" (default: ${VARIABLE}, else the log)",
    )


def handler(options: argparse.Namespace) -> Handler:
    """The handler of alerts and notices; raises HandlerError on a URL that names no service."""
    urls: list[str] = options.notify
    if not urls:
        return write_to_log
    # The services, loaded with the first URL, use what Python has deprecated: nothing to end a relay for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apprise

        for number, url in enumerate(urls, start=1):
            # not the URL itself: it has a password in it
            if apprise.Apprise.instantiate(url) is None:
                raise HandlerError(f"--notify: URL {number}, of {urlsplit(url).scheme!r}, names no service")

    def notify(event: Event) -> None:
        services = apprise.Apprise()
        for url in urls:
            services.add(with_key(url, event.dedup_key))
        title, text = wording(event)
        if not (result := services.notify(title=title, body=text, timeout=event.lease_left_s())):
            raise NotDelivered(f"of {len(urls)} services {result.success_count} took it")

    return notify


def write_to_log(event: Event) -> None:
    """The handler where no service is named."""
    title, text = wording(event)
    level = logging.ERROR if event.event_type.startswith("alert.") else logging.INFO
    log.log(level, "%s: %s", title, text.replace("\n", ", "))


def wording(event: Event) -> tuple[str, str]:
    """Title and text of an alert or a notice."""
    title = str(event.payload.get("title", event.event_type))
    facts = {name: value for name, value in event.payload.items() if name != "title"}
    text = str(facts.get("text") or json.dumps(facts, ensure_ascii=False))
    return title, f"{text}\n[{event.dedup_key}]"


def with_key(url: str, dedup_key: str) -> str:
    """The URL of a webhook with the header Idempotency-Key; any other URL as it is."""
    parts = urlsplit(url)
    if parts.scheme not in WEBHOOKS:
        return url
    header = f"+Idempotency-Key={quote(dedup_key, safe='')}"
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, header]))))
