"""Detects personal data with a recognisable form in a text.

Each detector is a pattern that finds candidates; most add a rule that rejects false positives: a checksum, a known
prefix, a length. docs/privacy.md lists the remaining false positives and negatives.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Iterator

Place = tuple[int, int]
Finder = Callable[[str], Iterator[Place]]

# The n of an escape such as \n must not become an address's first letter. The standard allows 64 characters.
_EMAIL = re.compile(
    r"(?<!\\)\w[\w.+%'-]{0,63}(?:@|%40)(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![^\W_])",
)

_GAP = r"[ .\-/\u00a0\u2010-\u2013]"  # between the groups of a telephone number
_PHONES = (
    # +49 30 901820, +1 (415) 555-2671, +44 (0)20 7946 0958, 0049 30 901820
    re.compile(
        rf"(?<![\w+.])(?:\+[1-9]|00[1-9][0-9]{{0,2}}(?={_GAP}))(?:(?:{_GAP}|[()]){{0,3}}[0-9]){{6,14}}(?![0-9A-Za-z_])"
    ),
    # (415) 555-2671, 415-555-2671, 1-415-555-2671: North America
    re.compile(
        rf"(?<![\w+.\-])(?:1{_GAP})?(?:\([2-9][0-9]{{2}}\){_GAP}?|[2-9][0-9]{{2}}{_GAP})[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}"
        r"(?!-?\w)"
    ),
    # 030 901820-12, (020) 7946 0958, 06 12 34 56 78: a trunk 0 and groups
    re.compile(rf"(?<![\w+.\-:])\(?0[1-9][0-9]{{0,4}}\)?(?:{_GAP}[0-9]{{2,8}}){{1,5}}(?!-?\w)"),
)
_TRUNK_DIGITS = range(9, 13)
_DATE = re.compile(r"[0-3]?[0-9]([./-])[0-3]?[0-9]\1[0-9]{4}(?![0-9])")

_GROUPS = re.compile(r"(?<![0-9A-Za-z_+])[0-9]{2,}(?:[ -][0-9]{2,})*(?![0-9A-Za-z_])")
_CARD_LENGTHS = range(13, 20)
_CARD_GROUPS = 9  # of two digits or more

_IBAN_START = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}")
# Length of an IBAN -> countries of the IBAN registry that use it.
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH CR HR LI LV",
    22: "BG BH DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTH = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}

_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_]|\.[0-9])")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f]{0,4})(?![0-9A-Za-z_:])"
)


def emails(text: str) -> Iterator[Place]:
    """Find e-mail addresses, also with %40 in place of @."""
    if "@" in text or "%40" in text:
        yield from (found.span() for found in _EMAIL.finditer(text))


def phones(text: str) -> Iterator[Place]:
    """Find telephone numbers: international ones, and national ones in groups of digits."""
    for pattern in _PHONES:
        for found in pattern.finditer(text):
            digits = sum(character in "0123456789" for character in found[0])
            if pattern is _PHONES[2] and (digits not in _TRUNK_DIGITS or _DATE.match(text, found.start())):
                continue
            yield found.span()


def cards(text: str) -> Iterator[Place]:
    """Find payment card numbers: 13 to 19 digits, possibly in groups, with a known prefix and a valid Luhn checksum."""
    for run in _GROUPS.finditer(text):
        # A run may hold more than the number, such as the card's expiry date; groups of digits are never split.
        groups = [(group.start(), group[0]) for group in re.finditer("[0-9]+", run[0])]
        first = 0
        while first < len(groups):
            count = _card_groups([digits for _, digits in groups[first : first + _CARD_GROUPS]])
            if count:
                place, digits = groups[first + count - 1]
                yield run.start() + groups[first][0], run.start() + place + len(digits)
            first += count or 1


def ibans(text: str) -> Iterator[Place]:
    """Find IBANs: numbers with the length of their country and a valid checksum modulo 97 (ISO 13616)."""
    for start in _IBAN_START.finditer(text):
        length = _IBAN_LENGTH.get(start[0][:2].upper())
        rest = _characters(length - 4).match(text, start.end()) if length else None
        if rest:
            number = re.sub(r"[ -]", "", start[0] + rest[0]).upper()
            if int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1:
                yield start.start(), rest.end()


def ips(text: str) -> Iterator[Place]:
    """Find IPv4 addresses, and IPv6 addresses with at least two groups."""
    if "." in text:
        for found in _IPV4.finditer(text):
            if _is_address(found[0]):
                yield found.span()
    if text.count(":") > 1:
        for found in _IPV6.finditer(text):
            if len(found[0].replace(":", " ").split()) > 1 and _is_address(found[0]):
                yield found.span()


DETECTORS: dict[str, Finder] = {"email": emails, "iban": ibans, "card": cards, "ip": ips, "phone": phones}


def _card_groups(groups: list[str]) -> int:
    """The number of leading groups of digits that form a card number, or 0."""
    for count in range(len(groups), 0, -1):
        digits = "".join(groups[:count])
        if len(digits) in _CARD_LENGTHS and _is_issued(digits) and _luhn(digits):
            return count
    return 0


def _is_issued(digits: str) -> bool:
    """Whether cards with this length and prefix are issued, by the ranges of ISO/IEC 7812 in use."""
    length, six = len(digits), int(digits[:6])
    two, three, four = six // 10_000, six // 1000, six // 100
    return (
        (digits[0] == "4" and length in (13, 16, 19))  # Visa
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)  # Mastercard
        or (two in (34, 37) and length == 15)  # American Express
        or ((300 <= three <= 305 or two in (36, 38, 39)) and 14 <= length <= 19)  # Diners Club
        or ((four == 6011 or two == 65 or 644 <= three <= 649 or two == 62) and length >= 16)  # Discover, UnionPay
        or (3528 <= four <= 3589 and length >= 16)  # JCB
        or four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)  # Maestro
    )


def _luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of ISO/IEC 7812, which doubles every second digit from the right."""
    total = 0
    for index, character in enumerate(reversed(digits)):
        digit = int(character) * (1 + index % 2)
        total += digit - 9 if digit > 9 else digit
    return total % 10 == 0


@functools.cache
def _characters(count: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[ -]?[0-9A-Za-z]){{{count}}}(?![0-9A-Za-z])")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
