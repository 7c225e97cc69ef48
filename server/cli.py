"""`idiolect-server`: the command of the operator.

Exit codes: 1 where the run failed, an audit, or a check of `doctor`; the others are in
`common/command.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ..common.command import (
    Argument,
    Command,
    add_commands,
    carry_out,
    given,
    new_parser,
)
from ..common.files import home


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect-server` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: getattr(options, "at", None) or home()
    )


# --- the command line ------------------------------------------------------------------


def _output(default: str | None, text: str) -> Argument:
    return given(
        "--output-dir",
        default=default,
        metavar="DIR",
        help=f"{text} (default: $IDIOLECT_HOME/runs, ~/.idiolect/runs)",
    )


AT = given(
    "--at",
    type=Path,
    metavar="DIR",
    help="the server's folder (default: $IDIOLECT_HOME/server)",
)
JSON = given("--json", action="store_true", help="print JSON")
PLAN = given(
    "--plan",
    action="store_true",
    help="say how long it will take, how much memory it needs, where the time goes and "
    "what to lower, and do nothing",
)
RAY = given(
    "--ray",
    default="",
    metavar="ADDRESS",
    help="compute on the Ray cluster there, HOST:PORT of its head or `auto`; data, "
    "backbone and --output-dir must be on paths that all its machines share (default: on "
    "this machine)",
)
KEYS = given(
    "-c",
    dest="words",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="set a configuration key in all cells; the study's results are then written "
    "under NAME-changed",
)
TENSORBOARD = given(
    "--tensorboard",
    type=Path,
    metavar="DIR",
    help="also write means, intervals and curves into DIR, for TensorBoard",
)
RUN = given("name", metavar="RUN", help="name of a run, or `latest`")
RUN_OF_SERVER = given("name", metavar="RUN", help="its name, or `latest`")
RUNS = _output("", "where runs are")
APP = (
    given(
        "app",
        type=Path,
        nargs="?",
        metavar="APP",
        help="folder of the Flower app (default: the built-in one, simulations/lamp)",
    ),
    given(
        "-c",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a configuration key; plain values without quotes; relative paths start "
        "at the current folder",
    ),
    given(
        "--preset",
        metavar="NAME",
        help="values of keys that are not given (`paper`, `real`)",
    ),
    given("--name", help="of the run (default: made from task, time and seed)"),
    given("--resume", metavar="NAME", help="continue a run; `latest` is the last one"),
    _output(None, "where runs are written"),
)
ABOUT_APP = (
    "Keys: docs/configuration.md. A stopped run continues with --resume latest, or with "
    "--resume NAME."
)


KEY_FILE = given(
    "--key-file",
    type=Path,
    metavar="FILE",
    help="the witness's private key (default: witness.key in $IDIOLECT_HOME)",
)
GROUPS = {
    "keys": "make the keys of a server of devices",
    "nodes": "enrol devices, list and revoke them",
    "witness": "vouch for devices, as somebody who is not the operator",
}

COMMANDS = (
    Command(
        "simulate",
        "simulate:start",
        "run a Flower app in simulation",
        (
            *APP,
            PLAN,
            TENSORBOARD,
            given(
                "--nodes",
                type=int,
                metavar="N",
                help="simulated SuperNodes, one process each; does not change the result "
                "(default: one per core, at most 8; with --ray one per core of the "
                "cluster, with --gpus-per-node as many as the GPUs suffice for)",
            ),
            given(
                "--gpus-per-node",
                type=float,
                default=0.0,
                metavar="G",
                help="GPUs that each node has to itself, or a share of one such as 0.5 "
                "(default: 0, all nodes see the same GPUs and use the first)",
            ),
            RAY,
        ),
        " The simulated devices are on this machine, and other accounts cannot reach them. "
        "Shows the progress; the exit code says whether the run succeeded.",
        ABOUT_APP,
        examples=(
            "-c users=12 -c methods=shared,sft,c-bpo --name first",
            "--resume latest",
        ),
    ),
    Command(
        "study",
        "studies:run_studies",
        "run declared experiments",
        (
            given(
                "files", type=Path, nargs="+", metavar="FILE.toml", help="what to run"
            ),
            KEYS,
            PLAN,
            given(
                "--so-far",
                action="store_true",
                help="compute nothing: tables and page of the cells that are finished",
            ),
            given(
                "--gpu",
                default="",
                metavar="NAME",
                help="with --plan: for a GPU that is not here, by its data sheet",
            ),
            given(
                "--gpus",
                type=int,
                default=1,
                metavar="N",
                help="how many of them, with one process each",
            ),
            given(
                "--jobs",
                type=int,
                metavar="N",
                help="compute so many cells at the same time, each in a process of its own "
                "(default: 1; with --ray one for each core of the cluster)",
            ),
            RAY,
            given(
                "--gpus-per-job",
                type=float,
                default=0.0,
                metavar="G",
                help="GPUs of the cluster that each cell has to itself, or a share of one "
                "such as 0.5 (default: 0, all use the first that they see)",
            ),
            given(
                "--output-dir",
                type=Path,
                metavar="DIR",
                help="where cells are written (default: studies, beside the runs)",
            ),
            given(
                "--findings",
                type=Path,
                metavar="DIR",
                help="also write summaries, pages and plots there, and DIR.md with all "
                "answers",
            ),
            TENSORBOARD,
        ),
        " They run without Flower. Each finished cell is a file; the same command again "
        "runs the missing cells.",
        "Threads of a process: OMP_NUM_THREADS; otherwise --jobs share the cores evenly. "
        "The built-in backbone is so small that --jobs 2 is faster than two threads.",
        examples=(
            "simulations/lamp/experiments/uniqueness.toml --jobs 2",
            "paper.toml --plan --gpu a100-80gb --gpus 4",
        ),
    ),
    Command(
        "keys init",
        "devices:make_keys",
        "make authority, certificate and signing key",
        (
            given("names", nargs="+", metavar="NAME", help="of the server"),
            given(
                "--port",
                type=int,
                default=9443,
                help="where devices connect (default: 9443)",
            ),
            AT,
        ),
        examples=("server.example.org 203.0.113.7 --port 9443",),
    ),
    Command(
        "keys renew",
        "devices:renew",
        "make a new certificate that devices also trust",
        (
            given(
                "names",
                nargs="*",
                metavar="NAME",
                help="(default: those of the old one)",
            ),
            AT,
        ),
        examples=(
            "",
            "server.example.org",
        ),
    ),
    Command(
        "keys witness",
        "devices:choose_witness",
        "name in the invitation who vouches for devices",
        (
            given(
                "key",
                metavar="KEY",
                help="that `witness key` shows; empty: nobody from now on",
            ),
            AT,
        ),
        examples=("DIGITS",),
    ),
    Command(
        "witness key",
        "devices:show_witness_key",
        "show the key of a witness, and make it first",
        (KEY_FILE,),
    ),
    Command(
        "witness vouch",
        "devices:sign_device",
        "sign the key of a device whose owner the witness knows",
        (
            given("invitation", type=Path, help="that the device's owner was given"),
            given("key", help="the line that `idiolect node join` prints"),
            KEY_FILE,
        ),
        examples=("invitation.json 'THE LINE'",),
    ),
    Command(
        "serve",
        "devices:serve_devices",
        "serve devices until ended",
        (
            given(
                "--host",
                default="0.0.0.0",
                help="where to listen (default: all addresses)",
            ),
            given(
                "--port",
                type=int,
                help="where to listen (default: that of the invitation)",
            ),
            given(
                "--metrics",
                type=int,
                metavar="PORT",
                help="of 127.0.0.1, where /health and Prometheus' /metrics are answered "
                "(default: nowhere)",
            ),
            given(
                "--log",
                type=Path,
                metavar="FILE",
                help="also write what is said there, one JSON object a line; rotated by "
                "size (default: none)",
            ),
            AT,
        ),
        examples=(
            "",
            "--host 203.0.113.7 --port 9443",
        ),
    ),
    Command(
        "doctor",
        "devices:check",
        "look whether this machine can serve devices, and what to do if not",
        (
            given(
                "--backbone",
                default="",
                metavar="NAME",
                help="also look at the model of your runs",
            ),
            JSON,
            AT,
        ),
        " Changes nothing. Exits with 1 if something is wrong.",
        examples=(
            "",
            "--backbone smollm2",
        ),
    ),
    Command(
        "run",
        "devices:run_on_devices",
        "run a Flower app on the devices of a server",
        (*APP, AT),
        epilog=ABOUT_APP,
        examples=(
            "my-app --name autumn",
            "--resume latest",
        ),
    ),
    Command(
        "attach",
        "devices:attach_run",
        "show a run on devices to its end",
        (RUN_OF_SERVER, AT),
        examples=("latest",),
    ),
    Command(
        "stop",
        "devices:end_run",
        "end a run on devices",
        (RUN_OF_SERVER, AT),
        examples=("autumn",),
    ),
    Command(
        "nodes add",
        "devices:add_device",
        "register a device",
        (
            given("key", help="the line that `idiolect node join` prints"),
            given("--label", default="", help="your name for it in `nodes list`"),
            AT,
        ),
        examples=("'THE LINE' --label ann",),
    ),
    Command(
        "nodes list",
        "devices:list_devices",
        "list the registered devices",
        (
            given("--json", action="store_true", help="print JSON, of all"),
            given("--all", action="store_true", help="also revoked ones"),
            AT,
        ),
        examples=("--all",),
    ),
    Command(
        "nodes revoke",
        "devices:revoke_device",
        "revoke a device",
        (
            given("node", metavar="NODE", help="number or label in `nodes list`"),
            AT,
        ),
        examples=("ann",),
    ),
    Command(
        "runs",
        "runs:list_runs",
        "list runs, oldest first",
        (JSON, RUNS),
        examples=("--json",),
    ),
    Command(
        "show",
        "runs:show_run",
        "print the results of a run",
        (JSON, RUN, RUNS),
        examples=("latest",),
    ),
    Command(
        "compare",
        "runs:compare_runs",
        "compare runs user by user, the others with the first",
        (
            JSON,
            given(
                "names",
                nargs="+",
                metavar="RUN",
                help="names of runs, the first before",
            ),
            RUNS,
        ),
        " They must have measured the same users on the same texts.",
        examples=("first second",),
    ),
    Command(
        "judge",
        "runs:judge",
        "let a language model compare outputs of a simulation in pairs",
        (
            given(
                "--endpoint",
                required=True,
                metavar="URL",
                help="OpenAI-compatible address on this machine, such as "
                "http://127.0.0.1:8080/v1",
            ),
            given("--model", required=True, metavar="NAME", help="its name there"),
            given(
                "--pairs",
                action="append",
                default=[],
                metavar="ONE,OTHER",
                help="two methods; can be repeated (default: the pairs that the run "
                "compares)",
            ),
            given(
                "--items",
                type=int,
                default=4,
                metavar="N",
                help="prompts of each user, at most (default: 4)",
            ),
            given(
                "--own",
                type=int,
                default=5,
                metavar="N",
                help="how many of the user's newest texts the judge sees (default: 5)",
            ),
            given(
                "--with-reference",
                action="store_true",
                help="also show it what the user wrote at the prompt",
            ),
            given(
                "--timeout",
                type=float,
                default=120.0,
                metavar="SECONDS",
                help="of one answer (default: 120)",
            ),
            given(
                "--allow-host",
                default="",
                metavar="HOST",
                help="a host that is not this machine, to which the texts may go",
            ),
            JSON,
            RUN,
            RUNS,
        ),
        " The texts of the simulation go to that model, and nowhere else. Each pair is "
        "asked in both orders; a verdict counts where both agree.",
        "The key, if one is needed: IDIOLECT_JUDGE_KEY. What numbers mean: docs/data.md.",
        examples=("latest --endpoint http://127.0.0.1:8080/v1 --model judge",),
    ),
    Command(
        "report",
        "runs:write_report",
        "write a page about a run or a study",
        (
            given(
                "name",
                metavar="RUN|STUDY",
                help="name of a run, or `latest`, or of a study, or a study's .json.gz",
            ),
            given("--open", action="store_true", help="also open it in the browser"),
            given(
                "--texts",
                action="store_true",
                help="also show texts of users, where a simulation kept them",
            ),
            given(
                "--to",
                type=Path,
                metavar="FILE",
                help="(default: report.html in the folder of the run or study)",
            ),
            TENSORBOARD,
            RUNS,
        ),
        " It is one HTML file that loads nothing from anywhere.",
        examples=(
            "latest --open",
            "uniqueness --tensorboard curves",
        ),
    ),
    Command(
        "delete",
        "runs:delete_run",
        "delete a run",
        (
            given("--yes", action="store_true", help="do not ask"),
            RUN,
            RUNS,
        ),
        " Its folder goes, with results, adapters, checkpoint and privacy ledger; a run "
        "that is in progress is refused.",
        examples=("first",),
    ),
    Command(
        "audit",
        "runs:audit",
        "attack what a run released, and the code that released it",
        (
            given("--seed", type=int, default=0, help="of the canaries (default: 0)"),
            RUN,
            RUNS,
        ),
        " Adds the findings to the privacy card. Exits with 1 if the honest mechanism "
        "leaks more than it claims, or if a broken one is not caught.",
        examples=("latest --seed 1",),
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("idiolect-server", "Run personalisation, and look at results.")
    return add_commands(parser, COMMANDS, GROUPS, _carry_out, describe=False)


def _carry_out(command: Command, options: argparse.Namespace) -> int:
    """Load a command's module, and carry it out; returns its exit code.

    `Command.run` is a module of `commands` and a function in it, which takes the options
    and returns an exit code, or None for 0.
    """
    module, _, name = command.run.partition(":")
    run = getattr(import_module(f"{__package__}.commands.{module}"), name)
    return run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
