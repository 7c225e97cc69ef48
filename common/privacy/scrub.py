"""What a device does to a text before it may leave it (kind `anonymised`).

Identifiers with a form of their own are replaced by placeholders, what looks like an
unknown secret drops the whole text, and at most a few items are offered. **This is not
anonymisation and not differential privacy**: the kind is labelled "not DP" everywhere.

What it does not do:

* Names, handles, street addresses, places, coordinates, dates of birth, employers: words
  are left as they are.
* Style and facts: who wrote a text can often be told from the rest of it (of 80 sources,
  a third were found from a single other paragraph), and scrubbing does not touch that.
* Numbers of fewer than 7 digits: door numbers, postcodes, one-time codes, short PINs.
* Bare host names (``example.org`` without scheme, ``www`` or path), secrets that are
  ordinary words, and passwords shorter than 16 characters that nothing announces.

Replaced are e-mail addresses, phone numbers, payment cards, IBANs, URLs, IP addresses,
identification numbers and announced or well-known secrets. Where a class is in doubt the
text is replaced too: a lost number costs a training item little. Every pattern is
anchored or bounded, so the time is linear in the text.
"""

import contextlib
import ipaddress
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from ..data.types import Item, Prompt

PLACEHOLDERS = (
    "<card>",
    "<email>",
    "<iban>",
    "<id>",
    "<ip>",
    "<phone>",
    "<secret>",
    "<url>",
)

OFFERED = 8  # items that one user offers at most
PASSES = 6  # one replaces and one sees that nothing is left, nearly always
FEWEST_DIGITS = 7  # a shorter number is a count, a year, a score
MARKS = 30  # combining marks in a row, as in Unicode's stream-safe format (UAX 15)
# Letters or digits of one kind in a row: about 2 in a random mix of 62 characters, 3.5
# in "human-in-the-loop", more in most compounds.
SECRET_PIECE = 3.5

Span = tuple[int, int, str]  # start, end, and what to write there
Rule = Callable[[str], Iterator[Span]]


def scrub(text: str) -> str | None:
    """Replace identifiers by placeholders, or drop the text.

    Parameters
    ----------
    text
        Any string.

    Returns
    -------
    str or None
        The text in NFC, in one line without invisible characters, with placeholders;
        scrubbing it again changes nothing. None where a token still looks like a secret
        (`secret_like`), where nothing but placeholders and punctuation is left, or where
        replacing does not come to an end: the item is dropped.
    """
    for _ in range(PASSES):
        scrubbed = normalise(text)
        for rule in RULES:
            scrubbed = _replace(scrubbed, rule)
        if scrubbed == text:
            break
        text = scrubbed
    else:
        return None
    if secret_like(text) or not _anything_left(text):
        return None
    return text


def offered(items: Sequence[Item], cap: int, longest: int) -> list[Item]:
    """Choose what one user offers: the latest items that survive scrubbing.

    Parameters
    ----------
    items
        The user's history, oldest first. Only the `input` of a prompt is the user's
        text; `before` and `after` are the task's fixed instruction and are kept.
    cap
        At most so many items.
    longest
        Characters to which each input and each target is cut, after scrubbing, so that
        no half of an identifier stays.

    Returns
    -------
    list of Item
        Distinct items, oldest first, with ids that say nothing about the user and
        without rivals.
    """
    chosen: dict[tuple[Prompt, str], None] = {}
    for item in reversed(items):
        if len(chosen) >= cap:
            break
        asked, target = _cut(item.prompt.input, longest), _cut(item.target, longest)
        if asked is not None and target is not None:
            chosen[Prompt(item.prompt.before, asked, item.prompt.after), target] = None
    return [
        Item(f"offered/{index}", prompt, target)
        for index, (prompt, target) in enumerate(reversed(chosen))
    ]


def _cut(text: str, longest: int) -> str | None:
    """Scrub and cut; what is returned is scrubbed, and at most `longest` long."""
    scrubbed = scrub(text)
    for _ in range(PASSES):
        if scrubbed is None or len(scrubbed) <= longest:
            return scrubbed
        # Half a placeholder says nothing, and a cut may make a number out of a longer
        # token, which then is replaced by something longer: hence the loop.
        scrubbed = scrub(re.sub(r"<[a-z]{0,6}\Z", "", scrubbed[:longest]))
    return None


def _anything_left(text: str) -> bool:
    rest = re.sub("|".join(PLACEHOLDERS), "", text)
    return any(unicodedata.category(char)[0] not in "PZ" for char in rest)


# --- characters ------------------------------------------------------------------------

# Not seen although no control characters: combining grapheme joiner, Hangul fillers,
# Khmer inherent vowels, Mongolian and general variation selectors, braille blank.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # the others are white space


def normalise(text: str) -> str:
    """NFC, one line, no control, bidi, invisible or private characters.

    Of combining marks in a row the first 30 stay: Unicode's algorithm sorts them, which
    CPython does in quadratic time.
    """
    if text.isascii():
        return " ".join(_CONTROLS.sub("", text).split())
    kept: list[str] = []
    marks = 0
    for char in _UNSEEN.sub("", text):
        if char.isspace():
            kept.append(" ")
            marks = 0
        elif unicodedata.category(char) not in ("Cc", "Cf", "Co", "Cs"):
            marks = marks + 1 if unicodedata.combining(char) else 0
            if marks <= MARKS:
                kept.append(char)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


@lru_cache(maxsize=1 << 14)
def _fold(char: str) -> str:
    """One character as ASCII where it is only another shape of it: ４ and ٤ are 4."""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category == "Pd" or char == "\u2212":
        return "-"
    simple = unicodedata.normalize("NFKC", char)
    return simple if len(simple) == 1 and category != "No" else char


def _shape(text: str) -> str:
    """The text as the patterns see it; as long as the text itself."""
    return text if text.isascii() else "".join(map(_fold, text))


def _replace(text: str, rule: Rule) -> str:
    parts: list[str] = []
    done = 0
    for start, end, placeholder in rule(_shape(text)):
        parts += [text[done:start], placeholder]
        done = end
    return "".join(parts) + text[done:]


# --- identifiers with a pattern --------------------------------------------------------


def _everywhere(placeholder: str, pattern: str, *needs: str) -> Rule:
    """Every match of a pattern, or of its group `value` where it has one.

    A text without any of `needs` (lower case) is not searched, which is ten times faster.
    """
    compiled = re.compile(pattern)
    group = "value" if "value" in compiled.groupindex else 0

    def rule(shape: str) -> Iterator[Span]:
        small = shape.lower()
        if needs and not any(part in small for part in needs):
            return
        for match in compiled.finditer(shape):
            yield (*match.span(group), placeholder)

    return rule


# Keys that announce themselves: AWS, GitHub, GitLab, Slack, OpenAI and Anthropic, Google,
# Stripe, Hugging Face, npm, PyPI, SendGrid; JSON web tokens begin with {" in base64.
_KEYS = (
    r"(?:(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|APKA|AROA)[A-Z0-9]{12,}"
    r"|gh[opusr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{8,}|xapp-[\w-]{8,}"
    r"|(?<!\w)sk-[\w-]{16,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
    r"|[rsp]k_(?:live|test)_\w{8,}|hf_\w{16,}|npm_\w{16,}|pypi-[\w-]{16,}"
    r"|(?<!\w)SG\.[\w-]{16,}(?:\.[\w-]{16,})?"
    r"|eyJ[\w-]{8,}+(?:\.[\w-]*+)*+)"
)

# A value is what stands in quotes, otherwise the next word. Words such as "token" also
# occur in prose ("token: a unit of text"): after a colon their value must look like one.
_VALUE = r"""(?P<value><secret>|"[^"]{1,200}"|'[^']{1,200}'|\S+)"""
_STRONG = (
    r"(?:pass(?:word|wd|phrase|code|wort)|kennwort|contrase\u00f1a|mot de passe|pwd"
    r"|senha|api[ _-]?key|(?:access|secret|private|account|encryption)[ _-]?key"
    r"|(?:access|auth|refresh|bearer|api|session)[ _-]?token|client[ _-]?secret)"
)
_WEAK = r"(?<![a-z])(?:token|secret|credentials?|auth|key|pin|pass)"
_STRONG_WORDS = (
    *("pass", "kennwort", "contrase", "mot de", "pwd", "senha"),
    *("key", "token", "secret"),
)
_ASSIGNED = r"[\w-]{0,20}[\"']?\s?(?::=|=>|[:=])\s?"
_MIXED = r"(?=\S{0,64}\d)(?=\S{0,64}[a-z])(?=\S{6})"
# Too much is taken rather than too little; trailing punctuation and what ends a clause
# in scripts without spaces stays.
_URL = (
    r"(?i)(?:(?<![a-z0-9+.-])[a-z0-9+.-]++://"
    r"|(?<![a-z0-9])www\d?\."
    r"|(?<![\w.@-])(?:[\w-]++\.)++[a-z]{2,24}(?::\d{1,5})?(?:/|\?[\w%-]{1,40}=))"
    r"[^\s\u3001\u3002\uff0c\uff1b\uff09\u300d\u3011]*(?<![.,;:!?)\]}'\"\u201d])"
)

_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~-]"
_HOST = (
    r"(?:\[?\d{1,3}(?:\.\d{1,3}){3}\]?"
    r"|(?![\d.]++(?![\w.-]))[\w-]++(?:\.[\w-]++)++)"  # not "recall@10.5"
)
_EMAIL = (
    rf"(?:\{{[^{{}}@]{{1,200}}\}}|\"[^\"@]{{1,64}}\"|(?<!{_LOCAL}){_LOCAL}++)@{_HOST}"
    r"|(?i:(?<![\w.+-])[\w.+-]++(?: ?[\[({] ?dot ?[\])}] ?[\w.+-]++){0,3}"
    r" ?[\[({] ?at ?[\])}] ?[\w-]++"
    r"(?:(?:\.| ?[\[({] ?dot ?[\])}] ?)[\w-]++)++)"
)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

# --- identifiers that take a look ------------------------------------------------------

# ISO 13616 registry: length of an IBAN by country.
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in (
        ("15", "NO"),
        ("16", "BE"),
        ("18", "DK FI FO GL NL SD FK"),
        ("19", "MK SI"),
        ("20", "AT BA EE KZ LT LU MN XK"),
        ("21", "CH CR HR LI LV"),
        ("22", "BG BH DE GB GE IE ME RS VA"),
        ("23", "AE GI IL IQ OM SO TL"),
        ("24", "AD CZ DZ ES MD PK RO SA SE SK TN VG"),
        ("25", "LY PT ST"),
        ("26", "IS TR"),
        ("27", "BF BI BJ CI CM CV DJ FR GR IT MC MG ML MR MZ SM SN"),
        ("28", "AL AZ BY CY DO GT HU LB NI PL SV"),
        ("29", "BR EG PS QA UA"),
        ("30", "JO KW MU YE"),
        ("31", "MT SC"),
        ("32", "LC"),
        ("33", "RU"),
    )
    for country in countries.split()
}
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,29}")


def _ibans(shape: str) -> Iterator[Span]:
    """Country, the country's length, at least 8 digits; a mistyped one counts too."""
    position = 0
    while match := _IBAN.search(shape, position):
        position = match.start() + 1
        length = _IBAN_LENGTHS.get(match[0][:2].upper(), 99)
        at = [i for i in range(*match.span()) if shape[i] not in " -"][:length]
        digits = sum(shape[i].isdecimal() for i in at)
        if len(at) == length and digits >= 8:
            position = at[-1] + 1
            yield match.start(), position, "<iban>"


_IPV6 = re.compile(r"(?<![\w:.])([0-9A-Fa-f:.]++)(?:%\w{1,32})?(?:/\d{1,3})?")


def _ipv6(shape: str) -> Iterator[Span]:
    for match in _IPV6.finditer(shape):
        address = match[1].rstrip(".")
        if address.endswith(":") and not address.endswith("::"):
            address = address[:-1]
        # "::" and "a::b" are operators and names of programming languages.
        groups = len([group for group in address.split(":") if group])
        named = groups < 3 and not any(char.isdecimal() for char in address)
        if named or len(address) > 45 or address.count(":") < 2:
            continue
        with contextlib.suppress(ValueError):
            ipaddress.IPv6Address(address)
            whole = address == match[1]
            end = match.end() if whole else match.start() + len(address)
            yield match.start(), end, "<ip>"


_WORD_WITH_DIGIT = re.compile(r"(?<!\w)[^\W\d]*+\d\w*+")


def _coded_words(shape: str) -> Iterator[Span]:
    """Words of letters and digits that are numbers of somebody or something."""
    for match in _WORD_WITH_DIGIT.finditer(shape):
        word = match[0]
        digits = sum(char.isdecimal() for char in word)
        if digits < len(word) and (
            re.search(rf"\d{{{FEWEST_DIGITS}}}", word)
            # A hash, a MAC address without separators.
            or (digits >= 4 and re.fullmatch(r"(?i)(?:0x)?[0-9a-f]{12,}", word))
            # Passports, vehicles, tax codes; not CONLL2003, ISO27001.
            or (digits >= 5 and len(word) >= 9 and word == word.upper())
        ):
            yield (*match.span(), "<id>")


# A number with its separators, from the first digit to the last. A full stop and a space
# end a sentence, a comma parts a list, so neither belongs to it.
_NUMBER = re.compile(
    r"(?<!\d)(?:(?P<count>(?<!,)\d{1,3}(?:,\d{3})++(?!\d))"
    r"|\(?\+?\(?\d(?:(?: ?[-/()]{1,2} ?| |\.)?+\d)*+)"
)
_EXTENSION = re.compile(r"(?i)[ ,]{0,2}(?:ext(?:ension)?|x)\.? ?\d{1,6}(?!\d)")


def _numbers(shape: str) -> Iterator[Span]:
    """Cards, phone numbers and other numbers of at least 7 digits.

    A run of digits and separators is looked at as a whole: what is neither a date, nor
    years, scores, decimals or a round range goes, whichever country groups it like that.
    """
    for match in _NUMBER.finditer(shape):
        if match["count"]:
            continue
        start, end = match.span()
        if start and shape[start - 1].isalpha():
            # "GPT4 2015 100": the word's own digits are not part of the number.
            own = re.match(r"(?:\d{1,2}|[12]\d{3}) ", match[0])
            start += own.end() if own else 0
        for first, last in _between_dates(shape, start, end):
            if placeholder := classify(shape[first:last]):
                if shape[first] == "(" and ")" not in shape[first:last]:
                    first += 1
                extension = _EXTENSION.match(shape, last)
                yield first, extension.end() if extension else last, placeholder


_DATE = re.compile(
    r"(?<![\d.+/-])(?:\d{4}(?P<a>[-/.])(?P<m1>\d{1,2})(?P=a)(?P<d1>\d{1,2})"
    r"|(?P<d2>\d{1,2})(?P<b>[-/.])(?P<m2>\d{1,2})(?P=b)(?:[12]\d{3}|\d{2}))(?![\d./-]\d|\d)"
)


def _between_dates(shape: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _DATE.finditer(shape, start, end):
        one, other = int(match["m1"] or match["m2"]), int(match["d1"] or match["d2"])
        if 1 <= min(one, other) <= 12 and max(one, other) <= 31:
            yield from _trimmed(shape, start, match.start())
            start = match.end()
    yield from _trimmed(shape, start, end)


# From the first digit, sign or bracket to the last digit.
_STRETCH = re.compile(r"[\d+(](?s:.*)\d|\d")


def _trimmed(shape: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The stretch without separators at its ends; nothing where it has no digit."""
    if match := _STRETCH.search(shape, start, end):
        yield match.span()


def classify(number: str) -> str:
    """Which placeholder a number with its separators gets.

    Parameters
    ----------
    number
        ASCII digits and separators, such as ``(555) 123-4567``.

    Returns
    -------
    str
        ``""`` where it is an ordinary number and stays.
    """
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    if len(digits) < FEWEST_DIGITS or _ordinary(number, groups):
        return ""
    if 13 <= len(digits) <= 19 and luhn(digits):
        return "<card>"
    sizes = tuple(map(len, groups))
    if len(digits) > 15 or sizes == (3, 2, 4):
        return "<id>"
    national = digits[0] == "0" and 9 <= len(digits) <= 13
    american = re.fullmatch(r"1?[2-9]\d{9}", digits)
    if "+" in number or len(groups) > 1 or national or american:
        return "<phone>"
    return "<id>"


def _ordinary(number: str, groups: list[str]) -> bool:
    """Years, scores, decimals, round ranges: not somebody's number."""
    if "+" in number and not number.startswith("+0."):
        return False
    pieces = re.split("[ /]", number)
    if all(re.fullmatch(r"(?:0|[1-9]\d{0,2})-(?:0|[1-9]\d{0,2})", p) for p in pieces):
        return True  # 21-19 21-15 21-18
    decimals = [bool(re.fullmatch(r"\+?\d{1,3}\.\d{1,5}", piece)) for piece in pieces]
    short = [bool(re.fullmatch(r"0|[1-9]\d{0,2}", piece)) for piece in pieces]
    if any(decimals) and all(map(max, decimals, short)):
        return True  # 85.3 90 78.21/4.5
    if any(len(group) > 5 for group in groups):
        return False
    values = [int(group) for group in groups]
    if all(len(g) == 4 and 1000 <= int(g) < 2100 for g in groups) and (
        values == sorted(values) or min(values) >= 1900
    ):
        return True  # 1789-1815, 2015 2014 2013
    if len(groups) == 2 and "-" in number and values[0] < values[1]:
        return not any(value % 50 for value in values)  # 500-1000
    return _beside_a_year(number, groups)


def _beside_a_year(number: str, groups: list[str]) -> bool:
    """A year and counts that happen to stand next to it: "in 2014 350 people"."""
    years = [len(group) == 4 and 1900 <= int(group) < 2100 for group in groups]
    if not any(years) or not re.fullmatch(r"[\d ()]+", number):
        return False
    first = years.index(True)
    rest = [(i > first, g) for i, g in enumerate(groups) if not years[i]]
    return sum(len(group) for _, group in rest) <= 5 and all(
        group[0] != "0"
        and (len(group) <= 2 or (after and (len(group) == 3 or int(group) % 50 == 0)))
        for after, group in rest
    )


def luhn(digits: str) -> bool:
    """Whether the check digit of a payment card is right (ISO/IEC 7812)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(digits[::-1])]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


# The order matters: what is inside a URL is part of it, a MAC address may begin like an
# IPv6 address, and numbers are what the others leave.
RULES: tuple[Rule, ...] = (
    # A block that was cut off counts to the end of the text. Line ends have become spaces.
    _everywhere(
        "<secret>",
        r"-----BEGIN [A-Z0-9 ]{1,60}-----"
        r"(?s:.*?)(?:-----END [A-Z0-9 ]{1,60}-----|\Z)",
        "-----begin ",
    ),
    _everywhere("<secret>", rf"(?i){_STRONG}{_ASSIGNED}{_VALUE}", *_STRONG_WORDS),
    _everywhere(
        "<secret>",
        rf"(?i){_WEAK}[\"']?\s?(?:(?::=|=>|=)\s?|:\s?{_MIXED}){_VALUE}",
        *("token", "secret", "credential", "auth", "key", "pin", "pass"),
    ),
    _everywhere(
        "<secret>",
        rf"(?i)(?:{_STRONG}|(?<![a-z])(?:pin|token|secret))\s(?:is|was)\s?:?\s"
        rf"(?=\S{{0,64}}\d){_VALUE}",
        *_STRONG_WORDS,
        "pin",
    ),
    _everywhere(
        "<secret>",
        r"(?i)authorization\s?:\s?(?:bearer|basic|digest|token)\s(?P<value>\S+)",
        "authorization",
    ),
    _everywhere("<url>", _URL, "://", "www", "/", "?"),
    _everywhere("<email>", _EMAIL, "@", "at)", "at]", "at}", "at )", "at ]", "at }"),
    _everywhere("<secret>", _KEYS),
    _everywhere("<id>", r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "-"),
    # Six pairs are a MAC address, more a key's fingerprint.
    _everywhere(
        "<id>",
        r"(?i)(?<![\w:.-])(?:[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5,}+"
        r"|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2})(?!\w|\.\w)",
        *(":", "-", "."),
    ),
    _ibans,
    _ipv6,
    _everywhere(
        "<ip>",
        rf"(?<![\w.]){_OCTET}(?:\.{_OCTET}){{3}}(?!\w|\.\d)"
        r"(?:/\d{1,2}(?!\d)|:\d{1,5}(?!\d))?",
        ".",
    ),
    _coded_words,
    _numbers,
)

# --- secrets without a form ------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z0-9+/=_.~$!@#%^&*:?|\\-]{16,}")
_SWITCH = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


def entropy(token: str) -> float:
    """Shannon entropy of a token's characters, in bits per character."""
    counts = Counter(token).values()
    return -sum(n / len(token) * math.log2(n / len(token)) for n in counts)


def secret_like(text: str) -> bool:
    """Whether a token looks like a random key.

    A token is at least 16 ASCII characters in a row, other than brackets, quotes, commas
    and semicolons, with two of lower case, upper case and digits. It looks random where

    * letters and digits change at least three times without anything between them, and
      its entropy is at least 3 bits per character; or
    * its pieces, runs of lower case with or without a capital, of capitals, or of digits,
      are shorter than 3.5 on average (words are longer), and its entropy is at least
      min(1.5 + log2(n) / 2, 4.5) bits per character for n characters: 3.5 for 16, 4 for
      32. English letters have about 3.1 and 3.7, random ones of an alphabet of 62 about
      3.75 and 4.5.

    Measured: 5 of 6831 English abstracts, posts and titles are dropped, for names such as
    "gpt-3.5-turbo-16k"; of random tokens of 16 (24) characters, 97 % (100 %) in base64
    and 81 % (94 %) in base32 are noticed. One of letters of one case never is.
    """
    return any(_random(match[0]) for match in _TOKEN.finditer(_shape(text)))


def _random(token: str) -> bool:
    classes = [str.islower, str.isupper, str.isdigit]
    if sum(any(map(kind, token)) for kind in classes) < 2:
        return False
    bits = entropy(token)
    if bits >= 3 and len(_SWITCH.findall(token)) >= 3:
        return True
    pieces = _PIECE.findall(token)
    if sum(map(len, pieces)) >= SECRET_PIECE * len(pieces):
        return False
    return bits >= min(1.5 + math.log2(len(token)) / 2, 4.5)
