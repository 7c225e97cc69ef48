"""A GGUF file, as llama.cpp reads it, turned into a folder in Hugging Face format."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from ..errors import IdiolectError, explained
from ..files import home, private_folder
from ..text import printable


def converted(file: Path) -> Path:
    """Return the folder of a GGUF file's model, converted when it is first asked for.

    Quantised weights become float32: adapters are trained on top of what they say. The
    folder is ``$IDIOLECT_HOME/models/HASH``, by the SHA-256 of the file.

    Raises
    ------
    IdiolectError
        The file is missing or damaged, or the package ``gguf`` is.
    """
    what, then = f"{file} cannot be read", "give the path of a GGUF file"
    with explained(what, then), file.expanduser().open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = home() / "models" / digest
    if not folder.is_dir():
        private_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _convert(file.expanduser().resolve(), Path(made) / "model")
            (Path(made) / "model").rename(folder)
    return folder


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
    except ImportError:
        raise IdiolectError(
            "reading a GGUF file needs the package gguf: `pip install gguf`."
        ) from None
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
