"""`idiolect serve-local`: the personal model for editors and other programs."""

import argparse
import sys
from pathlib import Path

from ...common.engine.reveals import REVEALS
from ...common.text import tell, tell_json, tell_sentence
from ..local.guard import ADDRESS, checked_origin, guarded
from ..local.openai import MODELS
from ..owner.consent import settings
from ..owner.resident import Loaded, endpoint_key
from ..owner.vault import Vault
from .answer import key_of
from .write import warn_of_toy


def serve(options: argparse.Namespace) -> int:
    """Answer programs that have the key, until Ctrl-C or SIGTERM."""
    from ..local.endpoint import Endpoint
    from ..local.serving import bound, serve
    from ..local.serving import key_of as key_of_endpoint

    origins = [checked_origin(origin) for origin in options.origin]
    with bound(options.port) as listener:
        port = listener.getsockname()[1]
        vault_key = key_of(options)
        with Vault.open(options.vault, vault_key) as vault:
            chosen = settings(vault)
        key = key_of_endpoint(options.vault, options.new_key)
        loaded = Loaded(options.vault, vault_key)
        try:
            warn_of_toy(chosen["backbone"])
            tell("loading the model; Ctrl-C here ends it", sys.stderr)
            loaded.begin()
            _say(options, f"http://{ADDRESS}:{port}/v1", endpoint_key(options.vault))
            app = guarded(Endpoint(loaded), port=port, token=key, origins=origins)
            serve(app, listener)
        finally:
            loaded.done(float(chosen["keep-loaded"]) > 0)
    return 0


def _say(options: argparse.Namespace, base: str, file: Path) -> None:
    """Say where programs have to point, and what they may learn."""
    if options.json:
        tell_json({"base_url": base, "key_file": str(file), "models": MODELS})
        return
    tell(
        f"base URL  {base}\n"
        f"API key   in {file}; no program needs more than its one line\n"
        f"models    {MODELS[0]}; {MODELS[1]}: without your adapter"
    )
    tell_sentence(
        f"{REVEALS} So can what it writes: give the key only to programs that may know "
        "your texts. Ctrl-C ends this."
    )
