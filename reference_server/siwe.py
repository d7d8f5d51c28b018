"""Messages by which a wallet says whose it is: EIP-4361 (Sign-In with Ethereum), signed as EIP-191 says.

The message is read by the grammar of EIP-4361 and nothing else: fields in their order, no blank line too
many, only ASCII. Narrower than the grammar: a domain is a host with perhaps a port, and numbers have a
length. An address is taken with its checksum (EIP-55) or all in lower case; both are one wallet.

Why not the package `siwe`: it does not work with the web3 of today.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from reference_server.problem import Problem

# Clocks of wallets' machines run ahead of ours by no more than this.
CLOCK_SKEW = timedelta(seconds=60)

_URI = r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
_MESSAGE = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?"
    r"(?P<domain>[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?)"
    r" wants you to sign in with your Ethereum account:\n"
    r"(?P<address>0x[0-9A-Fa-f]{40})\n"
    r"\n"
    r"(?:(?P<statement>[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;= ]+)\n)?"
    r"\n"
    rf"URI: (?P<uri>{_URI})\n"
    r"Version: (?P<version>1)\n"
    r"Chain ID: (?P<chain_id>[1-9][0-9]{0,17})\n"
    r"Nonce: (?P<nonce>[A-Za-z0-9]{8,64})\n"
    rf"Issued At: (?P<issued_at>{_TIME})"
    rf"(?:\nExpiration Time: (?P<expires_at>{_TIME}))?"
    rf"(?:\nNot Before: (?P<not_before>{_TIME}))?"
    r"(?:\nRequest ID: (?P<request_id>[A-Za-z0-9\-._~!$&'()*+,;=:@%]*))?"
    rf"(?:\nResources:(?P<resources>(?:\n- {_URI})*))?",
    re.ASCII,
)


class Audience(NamedTuple):
    """Whom a message must be for: the server's domain, with its port if any, and the chain."""

    domain: str
    chain_id: int


class Message(NamedTuple):
    """What a message says; the address in lower case."""

    scheme: str | None
    domain: str
    address: str
    uri: str
    chain_id: int
    nonce: str
    issued_at: datetime
    expires_at: datetime | None
    not_before: datetime | None


def parse_message(text: str) -> Message:
    """The parsed message; raises Problem `malformed`."""
    found = _MESSAGE.fullmatch(text)
    if found is None:
        raise Problem("malformed", "not a message as EIP-4361 has it", field="message")
    return Message(
        scheme=found["scheme"],
        domain=found["domain"],
        address=lower_address(found["address"], field="message"),
        uri=found["uri"],
        chain_id=int(found["chain_id"]),
        nonce=found["nonce"],
        issued_at=_time(found["issued_at"]),
        expires_at=_time(found["expires_at"]) if found["expires_at"] else None,
        not_before=_time(found["not_before"]) if found["not_before"] else None,
    )


def check_message(message: Message, audience: Audience, now: datetime) -> None:
    """Raise Problem `message_refused` unless the message is for this audience, and now."""
    if message.domain != audience.domain:
        raise _refused(f"the message is for another domain than {audience.domain}")
    if message.scheme not in (None, "http", "https"):
        raise _refused("the message is for another scheme than http and https")
    if urlsplit(message.uri).netloc != audience.domain:
        raise _refused(f"the URI is not one of {audience.domain}")
    if message.chain_id != audience.chain_id:
        raise _refused(f"the message is for another chain than {audience.chain_id}")
    if message.issued_at > now + CLOCK_SKEW:
        raise _refused("the message was issued in the future")
    if message.expires_at is not None and message.expires_at <= now:
        raise _refused("the message has expired")
    if message.not_before is not None and message.not_before > now:
        raise _refused("the message is not valid yet")


def check_signature(text: str, address: str, signature: str) -> None:
    """Raise Problem `signature_invalid` unless the owner of the lower-case address signed this text."""
    # imported here: it takes half a second, which a server that comes back does not have
    from eth_account import Account
    from eth_account.messages import encode_defunct
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    try:
        signer: str = Account.recover_message(encode_defunct(text=text), signature=signature)
    except (BadSignature, ValidationError, ValueError) as error:
        raise Problem("signature_invalid", f"not a signature: {error}"[:300], field="signature") from None
    if signer.lower() != address:
        raise Problem("signature_invalid", "signed by another account than it names", field="signature")


def prove_wallet(text: str, signature: str, audience: Audience) -> Message:
    """The message, if it is one for this audience that its account has signed; raises Problem."""
    message = parse_message(text)
    check_message(message, audience, datetime.now(UTC))
    check_signature(text, message.address, signature)
    return message


def lower_address(address: str, *, field: str) -> str:
    """The one spelling of an address; raises Problem `malformed` when its capitals are no checksum."""
    lower = address.lower()
    if address != lower:
        from eth_utils.address import is_checksum_address  # imported here, as above

        if not is_checksum_address(address):
            raise Problem("malformed", "the capitals of the address are not its checksum", field=field)
    return lower


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Problem("malformed", f"{text} is not a time", field="message") from None


def _refused(detail: str) -> Problem:
    return Problem("message_refused", detail, field="message")
