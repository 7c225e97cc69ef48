"""Files of LongLaMP: parquet, JSON lines, a JSON list, or a data set of a hub.

The published data (Kumar et al. 2024, arXiv 2407.11016) have one row per question:
``input``, ``output``, ``profile`` and the user, under a name that differs by task. Splits
are ``train``, ``val`` and ``test``, by user and by time, in folders such as
``abstract_generation_user``. Copies in other hands write the same rows as JSON.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import IdiolectError, explained, refuse_if, words_of
from ..cleaning import missing, read_text
from .forms import Form

logger = logging.getLogger(__name__)

HUB = "hub:"  # before the name of a data set that is loaded over the network
# task -> its folder without the kind of split, and the field that names the user.
PUBLISHED = {
    "LongLaMP-abstract": ("abstract_generation", "name"),
    "LongLaMP-review": ("product_review", "reviewerId"),
    "LongLaMP-topic": ("topic_writing", "author"),
}
KINDS = ("user", "temporal")
SPLITS = ("test", "val", "train")  # papers report the first
# Fields of profile items by the names that the authors' own code has for them.
OTHER_NAMES = {"LongLaMP-topic": {"summary": "input", "content": "output"}}
INSTALL = "install idiolect[longlamp]"
SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<all>\d{5})\.parquet")
AT_ONCE = 64  # rows of a parquet file; a profile has up to thousands of texts


def records(data: str, form: Form) -> tuple[str, Iterable[Any]]:
    """Return the name of the source, and one unchecked record per user in OPPU's shape.

    A user who asks several questions is one record, in the place of the first one and
    with its profile: it has nothing of what the later ones ask for.

    Raises
    ------
    IdiolectError
        There are no such files, they cannot be read, or they are of another task.
    """
    if data.startswith(HUB):
        return data, _grouped(_of_hub(data.removeprefix(HUB)), data, form)
    paths = _find(Path(data).expanduser(), form)
    name = f"{paths[0].parent.name}/{paths[0].name}"
    logger.info("%s: reading %s", form.task.name, ", ".join(map(str, paths)))
    if paths[0].suffix == ".parquet":
        return name, _of_parquet(paths, form)
    rows = [row for path in paths for row in _of_json(path)]
    if rows and isinstance(rows[0], dict) and "query" in rows[0]:
        return name, rows  # in OPPU's shape already
    return name, _grouped(rows, name, form)


# --- which file ------------------------------------------------------------------------


def _find(path: Path, form: Form) -> list[Path]:
    """Return the file, or the parts of one split in the folder."""
    if path.is_file():
        return _parts(path)
    refuse_if(
        not path.is_dir(),
        f"there is no file or folder {path}: set 'data' to the folder with the LongLaMP "
        "files (docs/data.md says where to get them).",
    )
    folder = _folder(path, form)
    for split in SPLITS:
        found = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        if found:
            return _parts(found[0])
        for suffix in ("parquet", "jsonl", "json"):
            if (one := folder / f"{split}.{suffix}").is_file():
                return [one]
    raise IdiolectError(
        f"{folder} holds no test, val or train as .parquet, .jsonl or .json: set 'data' to "
        f"such a file of {form.task.name}, or to its folder."
    )


def _folder(path: Path, form: Form) -> Path:
    """Return the folder of the task, where `path` holds several."""
    name = PUBLISHED[form.task.name][0]
    here = [one for kind in KINDS if (one := path / f"{name}_{kind}").is_dir()]
    refuse_if(
        len(here) > 1,
        f"{path} holds {name}_user and {name}_temporal: set 'data' to one of them, new "
        "users or later texts of known ones.",
    )
    return here[0] if here else path


def _parts(path: Path) -> list[Path]:
    """Return all parts of a file that is published in several."""
    found = SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["all"])
    parts = [
        path.with_name(f"{found['stem']}-{n:05}-of-{count:05}.parquet")
        for n in range(count)
    ]
    gone = [part.name for part in parts if not part.is_file()]
    refuse_if(
        gone,
        f"{path.parent} lacks {', '.join(gone)} of {count} parts: download it too.",
    )
    return parts


# --- rows ------------------------------------------------------------------------------


def _of_json(path: Path) -> list[Any]:
    """Rows of JSON lines, or of one JSON list."""
    text = read_text(path, "data")
    if text.lstrip().startswith("["):
        with explained(f"{path} is not JSON", "download it again", _NOT_JSON):
            return json.loads(text)
    rows: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            what = f"{path}, line {number}, is not JSON"
            with explained(what, "repair the file or download it again", _NOT_JSON):
                rows.append(json.loads(line))
    return rows


_NOT_JSON = (ValueError, RecursionError)


def _of_hub(name: str) -> Sequence[Any]:
    """Rows of ``OWNER/NAME/CONFIG/SPLIT``, downloaded by the library `datasets`."""
    owner, _, rest = name.partition("/")
    parts = rest.split("/")
    refuse_if(
        not owner or len(parts) != 3 or not all(parts),
        f"'data' is {HUB}{name}: write {HUB}OWNER/NAME/CONFIG/SPLIT, such as "
        f"{HUB}LongLaMP/LongLaMP/abstract_generation_user/test.",
    )
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise IdiolectError(
            f"{HUB}{name} needs the library datasets: {INSTALL}, or set 'data' to files."
        ) from None
    repository, config, split = f"{owner}/{parts[0]}", parts[1], parts[2]
    try:
        rows: Any = load_dataset(repository, config, split=split)
        return rows
    except Exception as error:  # of many libraries below it
        raise IdiolectError(
            f"cannot load {config}, {split}, of {repository} ({_line(error)}): check the "
            "names and the connection, or download the files and set 'data' to them."
        ) from None


def _grouped(rows: Iterable[Any], name: str, form: Form) -> list[Any]:
    """Return rows as one record per user."""
    users: dict[str, Any] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            users[f"\0{index}"] = row
            continue
        _check_fields(row, name, form)
        user = _user(row, form)
        key = f"\0{index}" if missing(user) else str(user)
        if key not in users:
            profile = _profile(row.get("profile"), form)
            users[key] = {"user_id": user, "profile": profile, "query": []}
        users[key]["query"].append(_query(index, row))
    return list(users.values())


def _of_parquet(paths: Sequence[Path], form: Form) -> Iterator[Any]:
    """Yield one record per user; of the profiles, only some are in memory at a time."""
    files = [_opened(path) for path in paths]
    name, columns = paths[0].name, files[0].schema_arrow.names
    _check_fields(dict.fromkeys(columns), name, form)
    small = [column for column in columns if column != "profile"]
    users: dict[str, Any] = {}
    first: dict[int, str] = {}  # row -> the user who asks there for the first time
    for index, row in enumerate(_rows(files, paths, small)):
        user = _user(row, form)
        key = f"\0{index}" if missing(user) else str(user)
        if key not in users:
            users[key], first[index] = {"user_id": user, "query": []}, key
        users[key]["query"].append(_query(index, row))
    for index, row in enumerate(_rows(files, paths, ["profile"])):
        if index in first:
            yield {**users[first[index]], "profile": _profile(row["profile"], form)}


def _rows(
    files: Sequence[Any], paths: Sequence[Path], columns: list[str]
) -> Iterator[dict[str, Any]]:
    for file, path in zip(files, paths, strict=True):
        with _arrow(f"{path} cannot be read"):
            for batch in file.iter_batches(AT_ONCE, columns=columns):
                yield from batch.to_pylist()


@contextlib.contextmanager
def _arrow(what: str) -> Iterator[None]:
    """Turn an error of Arrow, which has several lines, into a sentence."""
    try:
        yield
    except (OSError, ValueError) as error:  # its own are of these two
        raise IdiolectError(f"{what} ({_line(error)}): download it again.") from error


def _line(error: Exception) -> str:
    return f"{' '.join(words_of(error).split()):.200}".rstrip(".")


def _opened(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise IdiolectError(
            f"{path.name} needs the library pyarrow: {INSTALL}, or save the rows as "
            "JSON lines."
        ) from None
    with _arrow(f"{path} is not a parquet file"):
        return ParquetFile(path)


# --- fields ----------------------------------------------------------------------------


def _check_fields(row: Mapping[str, Any], name: str, form: Form) -> None:
    """Refuse rows without the fields of the task; say whose they are, if that is known."""
    own = PUBLISHED[form.task.name][1]
    lacking = [field for field in ("input", "output", "profile") if field not in row]
    if own not in row and "user_id" not in row:
        other = [task for task, (_, field) in PUBLISHED.items() if field in row]
        refuse_if(
            other and not lacking,
            f"{name} holds {' or '.join(other)}, but the config says {form.task.name}: set "
            f"task={' or '.join(other)}.",
        )
        lacking.insert(0, f"{own} or user_id")
    refuse_if(
        lacking,
        f"{name} has no field {', '.join(lacking)} (it has {', '.join(map(str, row))}): "
        f"set 'data' to the published files of {form.task.name}, or name the fields so.",
    )


def _user(row: Mapping[str, Any], form: Form) -> Any:
    return row.get("user_id", row.get(PUBLISHED[form.task.name][1]))


def _query(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    name = row.get("id")
    name = index if missing(name) else name
    return {"id": name, "input": row.get("input"), "gold": row.get("output")}


def _profile(profile: Any, form: Form) -> Any:
    """Return the profile as a list of items with the published fields, if it is one.

    Copies of the data write it as JSON in a text, or as one list for each field; the
    description of a product may be a list of paragraphs.
    """
    if isinstance(profile, str):
        try:
            profile = json.loads(profile)
        except _NOT_JSON:
            return profile
    if isinstance(profile, dict):
        lists = [value for value in profile.values() if isinstance(value, list)]
        if len(lists) == len(profile) and len(set(map(len, lists))) == 1:
            rows = zip(*lists, strict=True)
            profile = [dict(zip(profile, row, strict=True)) for row in rows]
    if not isinstance(profile, list):
        return profile
    return [_entry(entry, form) for entry in profile]


def _entry(entry: Any, form: Form) -> Any:
    if not isinstance(entry, dict):
        return entry
    for field, other in OTHER_NAMES.get(form.task.name, {}).items():
        if field not in entry and other in entry:
            entry = {**entry, field: entry[other]}
    parts = entry.get(form.source)
    if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
        entry = {**entry, form.source: " ".join(parts)}
    return entry
