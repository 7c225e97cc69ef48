"""Flower's SuperLink and SuperExec, open only to processes that know this server's token.

Flower 1.42 asks for no login on its control interface (submit a run, read logs, register a
node), lets everybody take a task from its runtime interface, and starts a ServerApp with
the task's token on the command line, which every account of the machine can read.
Listening on 127.0.0.1 keeps out other machines, but not other accounts. So both are
started through this module:

    superlink TOKEN …   flower-superlink, whose control interface asks for the token
    superexec …         flower-superexec, which passes a task's token in memory
    flwr-serverapp …    what the SuperExec starts for a run

None of them colours its log, which is a file.

The token is a file of this account. The `flwr` command sends it if the `credentials` are in
its ``FLWR_HOME``. The SuperExec signs with it if both get ``--superexec-auth-secret-file``
and the SuperLink gets ``--isolation process``.
"""

import base64
import hmac
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from flwr.cli.constant import (
    ACCESS_TOKEN_STORE_KEY,
    AUTHN_TYPE_STORE_KEY,
    REFRESH_TOKEN_STORE_KEY,
)
from flwr.common.constant import ACCESS_TOKEN_KEY, AuthnType
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountInfo
from flwr.supercore.constant import (
    TASK_TYPE_TO_APPIO_API_ADDRESS_ARG,
    TASK_TYPE_TO_COMMAND,
)
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.logger import update_console_handler
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

Metadata = Sequence[tuple[str, str | bytes]]


class TokenPlugin(NoOpControlAuthnPlugin):
    """Flower's account login with one account, whose password is the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Metadata
    ) -> tuple[bool, AccountInfo | None]:
        """Whether a call to the control interface has the token."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given, self._token):
            return False, None
        return super().validate_tokens_in_metadata(metadata)

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, None]:
        """Refuse: the token never changes."""
        raise FlowerError(ApiErrorCode.NO_ACCOUNT_AUTH, "the token does not change")

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        """Refuse: the token is never sent."""
        raise FlowerError(ApiErrorCode.NO_ACCOUNT_AUTH, "the token is in a file")


def credentials(address: str, token: str) -> str:
    """Return Flower's ``credentials.yaml``: what `flwr` sends to a SuperLink.

    Parameters
    ----------
    address
        ``host:port``, as in Flower's own configuration.
    token
        The token of `TokenPlugin`. The file must be private.
    """
    held = {
        AUTHN_TYPE_STORE_KEY: AuthnType.OIDC,  # the one kind whose plugin sends a token
        ACCESS_TOKEN_STORE_KEY: token,
        REFRESH_TOKEN_STORE_KEY: token,  # the plugin asks for it and never uses it
    }
    return "".join(
        f'"{key % address}": "{base64.b64encode(text.encode()).decode()}"\n'
        for key, text in held.items()
    )


def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
    """Start a task's process; its token is in memory that only this process passes on."""
    token = os.memfd_create("token")
    try:
        os.write(token, spec.token.encode())
        command = [
            *_program(TASK_TYPE_TO_COMMAND[spec.task_type]),
            TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type],
            spec.runtime_api_address,
            *("--token-file", f"/proc/self/fd/{token}"),
        ]
        if spec.insecure:
            command.append("--insecure")
        elif spec.root_certificates_path is not None:
            command += ["--root-certificates", spec.root_certificates_path]
        if spec.parent_pid is not None:
            command += ["--parent-pid", str(spec.parent_pid)]
        # Dependencies are never installed: what this account installed is what runs.
        output = subprocess.DEVNULL if spec.suppress_output else None
        subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[token])
    finally:
        os.close(token)
    return LaunchResult.accepted()


SERVER_APP = "flwr-serverapp"


def _program(name: str) -> list[str]:
    """Return the command line of a program of Flower, through this module if possible."""
    if name != SERVER_APP:
        return [name]
    return [sys.executable, "-P", "-m", "idiolect.server.deploy.superlink", name]


def superlink(token: str) -> None:
    """Run `flower-superlink`, with its arguments in `sys.argv`."""
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler
    from flwr.superlink.cli.flower_superlink import (
        SuperLinkLifespan,
        _parse_superlink_lifespan_config,
    )
    from flwr.superlink.main import create_app

    config = _parse_superlink_lifespan_config()
    config.authn_plugin = TokenPlugin(token)
    uvicorn.run(
        create_app(config, SuperLinkLifespan),
        host=config.host,
        port=config.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        server_header=False,
        timeout_keep_alive=30,  # longer than the proxy keeps an idle connection
    )


def main() -> None:
    """Run what the command line names: ``superlink TOKEN_FILE …``, ``superexec …``."""
    os.umask(0o077)  # what they write is private
    update_console_handler(colored=False)
    role, *arguments = sys.argv[1:]
    if role == "superlink":
        token = Path(arguments[0]).read_text().strip()
        sys.argv = ["flower-superlink", *arguments[1:]]
        superlink(token)
    elif role == SERVER_APP:
        from flwr.superlink.cli import flwr_serverapp

        sys.argv = [SERVER_APP, *arguments]
        flwr_serverapp()
    else:
        from flwr.supercore.cli.flower_superexec import flower_superexec

        SubprocessExecutor.launch = launch
        sys.argv = ["flower-superexec", *arguments]
        flower_superexec()


if __name__ == "__main__":
    main()
