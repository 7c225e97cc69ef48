"""Manifests: what is signed, every reason to refuse one, and the key on disk."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.protocol import manifest as module
from idiolect.common.protocol.manifest import (
    Manifest,
    ManifestError,
    Seen,
    accept,
    canonical,
    digest,
    new_key,
    parse,
    public_key,
    read_or_make_key,
    sign,
)

SEED = bytes(range(32))
KEY = public_key(SEED)
CONTENT = "c" * 64
NOW = 1_000_000.0
FIRST = Manifest(
    run="rün",
    kind="votes",
    version=1,
    previous="",
    content=CONTENT,
    count=400,
    features="crc32 3-5-grams",
    vote="votes/0",
    floor=1.5,
    epsilon=0.847,
    created=NOW - 10,
    expires=NOW + 1000,
)
SECOND = replace(FIRST, version=2, previous=digest(FIRST), epsilon=None)
THIRD = replace(FIRST, version=3, previous=digest(SECOND))
NEW = Seen(KEY, 0, "")


def take(
    manifest, seen: Seen | None = NEW, seed=SEED, run="rün", content=CONTENT, **more
):
    text = canonical(manifest).decode()
    return accept(text, sign(manifest, seed), run, content, seen, NOW, **more)


def refused(function, *arguments, **more) -> str:
    with pytest.raises(ManifestError) as caught:
        function(*arguments, **more)
    return str(caught.value)


# --- what is signed --------------------------------------------------------------------


def test_the_canonical_bytes():
    assert canonical(FIRST).decode() == (
        f'{{"content":"{CONTENT}","count":400,"created":999990.0,"epsilon":0.847,'
        '"expires":1001000.0,"features":"crc32 3-5-grams","floor":1.5,"kind":"votes",'
        '"previous":"","run":"rün","version":1,"vote":"votes/0"}'
    )
    assert canonical(replace(FIRST, floor=2)) == canonical(replace(FIRST, floor=2.0))


def test_the_key_is_rfc_8032s():
    seed = bytes.fromhex(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    )
    known = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert public_key(seed) == known
    assert len({new_key() for _ in range(4)}) == 4 and len(new_key()) == 32


def test_a_signature_is_for_a_manifest_and_nothing_else():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    bare = Ed25519PrivateKey.from_private_bytes(SEED).sign(canonical(FIRST)).hex()
    text = canonical(FIRST).decode()
    message = refused(accept, text, bare, "rün", CONTENT, NEW, NOW)
    assert "signature does not fit" in message


finite = st.floats(0, 1e300)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.text(st.characters(exclude_categories=("Cs",)), max_size=50)


@given(
    words, st.integers(2, 2**53 - 1), hashes, words, finite, st.none() | finite, finite
)
def test_parsing_undoes_writing(run, version, hashed, word, floor, epsilon, created):
    manifest = Manifest(
        run or "r",
        "bank",
        version,
        hashed,
        hashed,
        0,
        word,
        word,
        floor,
        epsilon,
        created,
        created * 2 + 1,
    )
    assert parse(canonical(manifest).decode()) == manifest
    assert parse(canonical(manifest).decode()).vote == word


# --- reading ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": ""}, "has no run or no kind"),
        ({"run": 3}, "'run' that is not a text"),
        ({"run": "x" * 501}, "'run' that is not a text"),
        ({"run": "\ud800"}, "'run' that is not valid Unicode"),
        ({"kind": "Bank"}, "no kind"),
        ({"kind": "../x"}, "no kind"),
        ({"version": 0}, "'version' and a 'previous'"),
        ({"version": True}, "'version' that is not a count"),
        ({"version": 1.0}, "'version' that is not a count"),
        ({"version": 2**53}, "'version' that is not a count"),
        ({"version": 2}, "'version' and a 'previous'"),
        ({"previous": "a" * 64}, "'version' and a 'previous'"),
        ({"version": 2, "previous": "A" * 64}, "'version' and a 'previous'"),
        ({"content": "c" * 63}, "'content' that is not a SHA-256"),
        ({"content": "C" * 64}, "'content' that is not a SHA-256"),
        ({"count": -1}, "'count'"),
        ({"features": None}, "'features'"),
        ({"vote": ["x"]}, "'vote'"),
        ({"floor": -0.5}, "'floor'"),
        ({"floor": float("nan")}, "'floor'"),
        ({"floor": None}, "'floor'"),
        ({"floor": 10**400}, "'floor'"),
        ({"epsilon": float("inf")}, "'epsilon'"),
        ({"epsilon": "1"}, "'epsilon'"),
        ({"created": True}, "'created'"),
        ({"expires": NOW - 10}, "expires before it was made"),
    ],
)
def test_fields_are_checked_when_writing_and_reading(change, said):
    assert said in refused(canonical, replace(FIRST, **change))
    values = json.loads(canonical(FIRST)) | change
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    message = refused(parse, text)
    # NaN and inf do not even pass as JSON.
    assert said in message or "is not JSON" in message


TEXT = canonical(FIRST).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 8000, "is not JSON"),
        ("9" * 8000, "is not JSON"),
        ("[]", "has not the fields"),
        ("{}", "has not the fields"),
        (TEXT.replace('"vote":', '"vot":'), "has not the fields"),
        (TEXT[:-1] + ',"z":1}', "has not the fields"),
        (TEXT + " ", "canonical"),
        (TEXT.replace(",", ", ", 1), "canonical"),
        (TEXT.replace("ü", "\\u00fc"), "canonical"),
        (TEXT.replace('"run":', '"run":"other","run":'), "canonical"),
        (TEXT.replace("1.5", "1.50"), "canonical"),
        (TEXT.replace("1.5", "1e999"), "'floor'"),
        (TEXT.replace("1.5", "NaN"), "is not JSON"),
        (TEXT.replace('"count":400', '"count":400.0'), "'count'"),
    ],
)
def test_texts_that_are_no_manifest(text, said):
    assert said in refused(parse, text)


def test_a_long_text_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(module.json, "loads", None)
    long = " " * 8193
    assert "longer than 8192 characters" in refused(parse, long)
    message = refused(accept, long, "0" * 128, "rün", CONTENT, NEW, NOW)
    assert "longer than 8192 characters" in message


# --- accepting -------------------------------------------------------------------------


def test_a_chain_is_followed():
    one = take(FIRST)
    assert one == Seen(KEY, 1, digest(FIRST))
    two = take(SECOND, one)
    assert two == Seen(KEY, 2, digest(SECOND))
    assert take(THIRD, two, kind="votes") == Seen(KEY, 3, digest(THIRD))


def test_the_same_manifest_is_taken_again():
    one = take(FIRST)
    assert take(FIRST, one) == one


def test_who_was_away_may_have_missed_versions():
    assert take(THIRD, take(FIRST)).version == 3
    assert take(THIRD).version == 3  # first contact


REASONS = {
    "no key": (lambda: take(FIRST, None), "no signing key is pinned"),
    "empty key": (lambda: take(FIRST, Seen("", 0, "")), "no signing key is pinned"),
    "other key": (lambda: take(FIRST, seed=new_key()), "does not fit the pinned key"),
    "no such key": (
        lambda: take(FIRST, Seen("z" * 64, 0, "")),
        "does not fit the pinned key",
    ),
    "other run": (lambda: take(FIRST, run="run"), "of the run 'rün'"),
    "other kind": (lambda: take(FIRST, kind="bank"), "kind 'votes' where 'bank'"),
    "older": (
        lambda: take(FIRST, Seen(KEY, 2, digest(SECOND))),
        "is older than version 2",
    ),
    "same version": (
        lambda: take(replace(SECOND, count=1), Seen(KEY, 2, digest(SECOND))),
        "differs from the one that this device has",
    ),
    "other past": (
        lambda: take(replace(SECOND, previous="d" * 64), take(FIRST)),
        "does not continue the version 1",
    ),
    "expired": (
        lambda: take(replace(FIRST, created=1.0, expires=NOW)),
        "has expired",
    ),
    "not yet": (
        lambda: take(replace(FIRST, created=NOW + 301)),
        "301 seconds ahead of this device's clock",
    ),
    "other items": (lambda: take(FIRST, content="d" * 64), "are not the signed ones"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_refusal_has_its_own_sentence(reason):
    attempt, said = REASONS[reason]
    message = refused(attempt)
    assert said in message
    others = {other for _, other in REASONS.values()} - {said}
    assert not any(other in message for other in others)
    assert message.count(": ") >= 1 and message.endswith(".")


def test_the_ends_of_the_times():
    assert take(replace(FIRST, expires=NOW + 0.01)).version == 1
    assert take(replace(FIRST, created=NOW + 299)).version == 1


def test_an_older_version_cannot_be_played_back():
    seen = NEW
    for manifest in (FIRST, SECOND, THIRD):
        seen = take(manifest, seen)
    for old in (FIRST, SECOND):
        assert "is older than version 3" in refused(take, old, seen)
    # At first contact nothing is known, so an old one passes while it is valid.
    assert take(SECOND).version == 2


SIGNATURE = sign(FIRST, SEED)
RAW = TEXT.encode()


@given(st.integers(0, 8 * len(RAW) - 1))
def test_one_changed_bit_of_the_text_is_noticed(bit):
    raw = bytearray(RAW)
    raw[bit // 8] ^= 1 << bit % 8
    text = raw.decode(errors="surrogateescape")
    message = refused(accept, text, SIGNATURE, "rün", CONTENT, NEW, NOW)
    assert "does not fit the pinned key" in message


@given(st.integers(0, 8 * 128 - 1))
def test_one_changed_bit_of_the_signature_is_noticed(bit):
    raw = bytearray(SIGNATURE.encode())
    raw[bit // 8] ^= 1 << bit % 8
    text = raw.decode(errors="surrogateescape")
    message = refused(accept, TEXT, text, "rün", CONTENT, NEW, NOW)
    assert "does not fit the pinned key" in message


@pytest.mark.parametrize(
    "signature",
    [
        "",
        SIGNATURE.upper(),
        SIGNATURE + "\n",
        " " + SIGNATURE,
        SIGNATURE[:-2],
        "é" * 128,
    ],
)
def test_a_signature_has_one_spelling(signature):
    message = refused(accept, TEXT, signature, "rün", CONTENT, NEW, NOW)
    assert "does not fit the pinned key" in message


def test_a_signed_text_that_is_not_canonical_is_refused():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text = TEXT + " "
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    signature = key.sign(b"idiolect manifest 1\n" + text.encode()).hex()
    message = refused(accept, text, signature, "rün", CONTENT, NEW, NOW)
    assert "canonical" in message


# --- the signing key on disk -----------------------------------------------------------


def test_a_key_is_made_once(tmp_path):
    path = tmp_path / "run" / "signing-key"
    seed = read_or_make_key(path)
    assert read_or_make_key(path) == seed
    assert path.read_text() == f"{seed.hex()}\n{public_key(seed)}\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["signing-key"]
    assert read_or_make_key(tmp_path / "other") != seed


def test_only_the_owner_can_ever_read_the_key(tmp_path, monkeypatch):
    modes = []
    really_open = os.open

    def seen_mode(*arguments):
        handle = really_open(*arguments)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))  # before a byte is written
        return handle

    monkeypatch.setattr(os, "open", seen_mode)
    monkeypatch.setattr(os, "chmod", None)
    path = tmp_path / "signing-key"
    before = os.umask(0)
    try:
        read_or_make_key(path)
    finally:
        os.umask(before)
    assert modes[0] == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_key_is_refused_and_kept(tmp_path):
    path = tmp_path / "signing-key"
    seed = read_or_make_key(path)
    good = path.read_bytes()
    changed = bytes([good[0] ^ 1]) + good[1:]
    swapped = f"{seed.hex()}\n{public_key(new_key())}\n".encode()
    for bad in (b"", good[:-1], good + b"\n", seed, changed, swapped, b"\xff" * 130):
        path.write_bytes(bad)
        with pytest.raises(IdiolectError, match="is damaged: restore it") as caught:
            read_or_make_key(path)
        assert str(path) in str(caught.value)
        assert seed.hex() not in str(caught.value)
        assert path.read_bytes() == bad


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdiolectError, match="cannot be read or written"):
        read_or_make_key(tmp_path / "file" / "signing-key")


def test_the_second_process_takes_the_key_of_the_first(tmp_path, monkeypatch):
    path = tmp_path / "signing-key"
    link = os.link
    made = []

    def late(source, target):
        monkeypatch.setattr(os, "link", link)
        made.append(read_or_make_key(path))  # another one, just before ours is linked
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert read_or_make_key(path) == made[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["signing-key"]


@pytest.mark.process
def test_processes_at_once_get_one_key(tmp_path):
    # Each waits for a line, so that they begin together.
    code = (
        "import pathlib, sys;"
        "from idiolect.common.protocol.manifest import read_or_make_key;"
        "print(flush=True); sys.stdin.readline();"
        "print(read_or_make_key(pathlib.Path(sys.argv[1])).hex())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "signing-key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert len(set(printed)) == 1 and len(printed[0]) == 64
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
