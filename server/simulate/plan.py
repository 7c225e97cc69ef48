"""A run before it starts: its settings, name and folder, checked as far as possible."""

import itertools
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from ...common import config as configuration
from ...common.config import (
    BUILT_IN,
    Config,
    RunOptions,
    absolute_backbone,
    flatten,
    presets,
)
from ...common.config.old import current
from ...common.config.parse import OPTIONS, split
from ...common.data.lamp.longlamp import HUB
from ...common.data.load import load_dataset
from ...common.engine.model_folder import locate, only_gguf
from ...common.engine.rates import with_rates
from ...common.errors import IdiolectError, refuse_if
from ...common.text import read_toml
from ..run import results
from .cluster import Cluster, survey
from .environment import CHOSEN, inherited, joining
from .progress import say


@dataclass(frozen=True)
class Plan:
    """A run that passed all checks: its app, configuration and folder."""

    app: Path
    config: Config
    folder: Path
    nodes: int
    server_log: Path | None = None  # of a server of devices, if it has the run
    resumed: bool = False
    gpus: float = 0.0  # that each simulated node has to itself; 0: all see the same
    cluster: Cluster | None = None  # that computes; None: this machine

    @property
    def settings(self) -> dict[str, configuration.Scalar]:
        """The settings for Flower: the configuration and the options of the run."""
        name, folder = self.folder.name, str(self.folder.parent)
        options = RunOptions(name, name if self.resumed else "", folder)
        return options.flat() | flatten(self.config)

    @property
    def scratch(self) -> Path:
        """Folder of `simulate`'s own files; the run's folder belongs to the ServerApp."""
        return self.folder.with_name(f".{self.folder.name}")

    @property
    def log(self) -> Path:
        """File with the output of Flower, Ray and the run after the end of the run."""
        place = self.folder if self.folder.is_dir() else self.scratch
        return self.server_log or place / "run.log"

    @property
    def metrics(self) -> Path:
        """File with the events of the run."""
        return self.folder / "metrics.jsonl"


def built_in_app() -> Path:
    """Return the folder of the Flower app that is installed with the package."""
    return Path(str(files("idiolect") / "simulations" / "lamp")).resolve()


def prepare(
    app: Path,
    words: Sequence[str],
    nodes: int | None,
    cwd: Path,
    gpus: float = 0.0,
    ray: str = "",
) -> Plan:
    """Check a run as far as possible before anything is started or written.

    Parameters
    ----------
    app
        Folder of the Flower app.
    words
        ``key=value``, as given with ``-c``.
    nodes
        Simulated SuperNodes; None: `default_nodes`.
    cwd
        Folder where relative paths start.
    gpus
        GPUs that each node has to itself, or the share of one; 0: all see the same.
    ray
        Address of a Ray cluster that computes; nothing: this machine.

    Raises
    ------
    IdiolectError
        An unknown key, a value out of range, missing data, a run that can't be resumed,
        or anything else that would make the run fail later (`checks`, `cluster`).
    """
    config, options = configured(app, words, cwd)
    folder = Path(options.folder, options.name)
    refuse_if(
        config.on_devices,
        "task 'text' is what owners keep on their devices: run it there by "
        "`idiolect-server run`, or set task=headline to simulate.",
    )
    check_backbone(config.backbone)
    load_dataset(config)
    check_folder(folder.parent)
    refuse_broken(app)
    check_gpus(config, gpus)
    resumed = bool(options.resume)
    plan = Plan(app.absolute(), config, folder, 1, resumed=resumed, gpus=gpus)
    if ray and not has_finished(plan):
        plan = replace(plan, cluster=join(plan, ray))
    plan = replace(plan, nodes=counted(plan, nodes))
    if not folder.exists():  # a resumed run may be past what is checked
        from .checks import check_start

        fetch_backbone(config.backbone)
        check_start(config)
    return plan


def counted(plan: Plan, nodes: int | None) -> int:
    """Return how many simulated nodes a run has, by what was asked for."""
    most = plan.config.users + plan.config.development_users
    room = default_nodes(plan.gpus, plan.cluster)
    if nodes is None:
        return min(room, most)
    refuse_if(
        not 1 <= nodes <= most,
        f"--nodes is {nodes}, but there are {most} users: use 1 to {most}.",
    )
    return nodes


def check_gpus(config: Config, gpus: float) -> None:
    """Refuse GPUs for each node that Ray could not hand out, or that nobody would use."""
    if not gpus:
        return
    refuse_if(
        gpus < 0.01 or (gpus > 1 and gpus % 1),
        f"--gpus-per-node is {gpus:g}: give a share of one GPU from 0.01 to 1, or a whole "
        "number of GPUs.",
    )
    device = config.engine.device
    refuse_if(
        device not in ("auto", "cuda", "cuda:0"),
        f"config key 'engine.device' is '{device}', and with --gpus-per-node each node "
        "sees its own GPUs alone: set engine.device=auto.",
    )


def default_nodes(gpus: float, cluster: Cluster | None) -> int:
    """Return how many simulated nodes there are room for: on this machine at most 8.

    Raises
    ------
    IdiolectError
        There is no room for one.
    """
    if cluster is not None:
        return cluster.places(gpus, "--gpus-per-node")
    if not gpus:
        return min(len(os.sched_getaffinity(0)), 8)
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    refuse_if(
        seen < gpus,
        f"--gpus-per-node is {gpus:g}, and torch sees {seen or 'no'} "
        f"GPU{'s' * (seen > 1)} here: lower it, or leave it out.",
    )
    return int(seen / gpus)


def join(plan: Plan, address: str) -> Cluster:
    """Ask every machine of a Ray cluster whether it has what a run needs (`survey`)."""
    paths = {"APP": str(plan.app)} if any(plan.app.rglob("*.py")) else {}
    paths |= shared_paths(plan.config)
    return surveyed(address, paths, plan.folder.parent)


def shared_paths(config: Config) -> dict[str, str]:
    """Return key -> path of what all machines of a cluster must have for a run."""
    paths = {}
    if config.data and not config.data.startswith(HUB):
        paths["data"] = config.data
    if config.unlabeled.file:
        paths["unlabeled.file"] = config.unlabeled.file
    if config.backbone not in BUILT_IN:
        there = Path(config.backbone).exists()
        paths["backbone"] = config.backbone if there else str(locate(config.backbone))
    return paths


def surveyed(address: str, paths: Mapping[str, str], folder: Path) -> Cluster:
    """`survey` from a process with a run's environment, and what lets it join."""
    environment = {**inherited(os.environ), **CHOSEN, **joining()}
    return survey(address, paths, nearest(folder), environment)


def configured(app: Path, words: Sequence[str], cwd: Path) -> tuple[Config, RunOptions]:
    """Read the app's settings and the given ones; name the run, or find the one to resume.

    A given key wins over the preset, and the preset wins over the app's table.

    Raises
    ------
    IdiolectError
        An unknown key, a value out of range, a run that can't be resumed.
    """
    listed, words_given = read_app(app), dict(map(_split, words))
    options = split({**listed, **words_given})[0]
    folder = str(cwd / Path(options.folder).expanduser()) if options.folder else ""
    options = replace(options, folder=str(results.runs_folder(folder)))
    given = current(
        {
            name: configuration.parse_word(name, str(text))
            for name, text in split(words_given)[1].items()
        }
    )
    base = current(split(listed)[1])
    preset = presets.read(str({**base, **given}.get("preset", "")))
    config = resolve_paths(configuration.parse({**base, **preset, **given}), cwd)
    latest = Path(options.folder, "latest")
    # `--resume latest` without a run starts one, so a supervisor can repeat one command.
    if options.resume and (options.resume != "latest" or latest.exists()):
        return resumed(options, given, cwd)
    return config, named(config, options)


def read_app(app: Path) -> dict[str, Any]:
    """Read the settings in a Flower app's ``pyproject.toml``, with flat keys."""
    file = app / "pyproject.toml"
    try:
        settings = _flat(read_toml(file.read_text())["tool"]["flwr"]["app"]["config"])
    except FileNotFoundError:
        raise IdiolectError(
            f"{file} does not exist: give the folder of a Flower app, for example "
            "simulations/lamp."
        ) from None
    except (KeyError, TypeError):
        raise IdiolectError(
            f"{file} has no table [tool.flwr.app.config]: copy the one of "
            "simulations/lamp/pyproject.toml."
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise IdiolectError(f"{file} is not valid TOML ({error}): repair it.") from None
    for name in (*configuration.FIELDS, *OPTIONS):
        refuse_if(
            name not in settings,
            f"{file} lists no '{name}' in [tool.flwr.app.config], and Flower passes on "
            "only what is listed: copy the table of simulations/lamp.",
        )
    return settings


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _split(word: str) -> tuple[str, str]:
    name, equals, text = word.partition("=")
    refuse_if(
        not equals, f"-c takes key=value, not '{word}': see docs/configuration.md."
    )
    return name.strip(), text


def resolve_paths(config: Config, cwd: Path) -> Config:
    """Make paths absolute: Flower runs the app in another folder."""
    flat = flatten(config)
    for name in ("data", "unlabeled.file"):
        if flat[name] and not str(flat[name]).startswith(HUB):
            flat[name] = str((cwd / Path(str(flat[name])).expanduser()).resolve())
    flat["backbone"] = absolute_backbone(config.backbone, cwd)
    return configuration.parse(flat)


def named(config: Config, options: RunOptions) -> RunOptions:
    """Choose the name of a new run, or check the one that was given."""
    output = Path(options.folder)
    if name := options.name:
        refuse_if(
            name == "latest" or name.startswith(".") or "/" in name,
            f"the name of a run is '{name}': it names a folder; use letters, digits "
            "and dashes, and not 'latest'.",
        )
        refuse_if(
            (output / name).exists(),
            f"run '{name}' exists in {output}: choose another --name, or continue it "
            f"with --resume {name}.",
        )
    else:
        stem = f"{config.task.lower()}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
        name = next(name for name in names if not (output / name).exists())
    return RunOptions(name, "", options.folder)


def resumed(
    options: RunOptions, given: Mapping[str, Any], cwd: Path
) -> tuple[Config, RunOptions]:
    """Return the saved config of a run; refuse a key that is given another value."""
    folder = results.find(options.folder, options.resume)
    try:
        text = (folder / "config.toml").read_text()
        saved = with_rates(configuration.from_toml(text))
    except FileNotFoundError:
        raise IdiolectError(
            f"run '{folder.name}' ended before it had saved its config: start it again "
            "without --resume."
        ) from None
    except (IdiolectError, tomllib.TOMLDecodeError) as error:
        raise IdiolectError(
            f"run '{folder.name}' was saved by another version of idiolect ({error}): "
            "install that version, or start a new run."
        ) from None
    preset = presets.read(str(given.get("preset", "")))
    wanted = configuration.parse({**flatten(saved), **preset, **given})
    wanted = with_rates(resolve_paths(wanted, cwd))
    changed = configuration.differences(saved, wanted)
    # A preset also changes keys that were not given.
    changed = [name for name in changed if name in given] or changed
    refuse_if(
        changed,
        f"run '{folder.name}' was started with another {', '.join(changed)}: resume it "
        "without that key, or start a new run.",
    )
    return saved, RunOptions(folder.name, folder.name, str(folder.parent))


def check_backbone(name: str) -> None:
    """Refuse a backbone that can't be loaded, as far as its files tell."""
    path = Path(absolute_backbone(name))  # refuses a path where nothing is
    if name in BUILT_IN or path.is_file():
        return
    if path.is_dir():
        return refuse_if(
            not (path / "config.json").is_file() and not only_gguf(name),
            f"the backbone folder {path} has neither a config.json nor a GGUF file: give a "
            "folder as save_pretrained of transformers writes it.",
        )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        from huggingface_hub import try_to_load_from_cache

        refuse_if(
            not isinstance(try_to_load_from_cache(name, "config.json"), str),
            f"the backbone '{name}' is not in the local cache and HF_HUB_OFFLINE is "
            "set: unset it, or give a folder.",
        )


def nearest(folder: Path) -> Path:
    """Return a folder, or the first above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_folder(folder: Path) -> None:
    """Refuse a folder where runs can't be written."""
    there = nearest(folder)
    refuse_if(
        not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)),
        f"runs can't be written to {folder}: set --output-dir to a folder that can.",
    )


def fetch_backbone(name: str) -> None:
    """Fetch a backbone from the model hub, with the proxies of the caller's environment.

    The processes of a run do not inherit the proxies and never use the network. A GGUF
    file is converted here, too: the account that waits then reads so.
    """
    if name != "tiny":
        locate(name)


def refuse_broken(app: Path) -> None:
    """Refuse an app that Flower could not load.

    Raises
    ------
    IdiolectError
        Its ``pyproject.toml`` is invalid, or names something that is not there.
    """
    from flwr.cli.config_utils import load_and_validate

    try:
        load_and_validate(app / "pyproject.toml")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise IdiolectError(f"Flower refused the app {app}: {reason}") from None


def has_finished(plan: Plan) -> bool:
    """Whether this resumes a run that has finished already."""
    return plan.resumed and results.state_of(plan.folder) == "finished"


def finished(plan: Plan, console: Console) -> dict[str, Any] | None:
    """Return the results of a resumed run that has finished already; otherwise None."""
    if not has_finished(plan):
        return None
    say(console, f"run {plan.folder.name} has finished already")
    return results.load(str(plan.folder.parent), plan.folder.name)
