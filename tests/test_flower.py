"""What this package uses of Flower that Flower does not document as its interface.

A new release of Flower may change any of it without notice. These tables name all of it
and why, and the tests compare them with the code and with the Flower that is installed.
"""

import ast
import importlib
import importlib.util
from pathlib import Path

import flwr
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

ROOT = Path(__file__).resolve().parents[1]
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for side in ("client", "common", "server")
    for path in sorted((ROOT / side).rglob("*.py"))
}

# Flower's documented interface: not listed below.
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}

# Module -> why it is used, and the names that are imported.
IMPORTS = {
    # client/node: the device has its own message loop, because Flower's ends the process
    # when a call is refused. The calls, their encoding and their signatures are Flower's.
    "flwr.app.message": (
        "replies travel without content; an error reply takes the place of a lost one",
        {"make_message", "remove_content_from_message"},
    ),
    "flwr.common.serde": (
        "messages as Flower encodes them",
        {"message_from_proto", "message_to_proto"},
    ),
    "flwr.common.constant": (
        "heartbeat interval, clock tolerance of signatures, header and error names",
        {"ACCESS_TOKEN_KEY", "AuthnType", "ErrorCode", "HEARTBEAT_DEFAULT_INTERVAL"}
        | {"SUPERLINK_NODE_ID", "SYSTEM_TIME_TOLERANCE", "TIMESTAMP_HEADER"}
        | {"TIMESTAMP_TOLERANCE"},
    ),
    "flwr.proto.fleet_pb2": (
        "the calls between device and SuperLink; the entrance reads and checks them",
        {"ActivateNodeRequest", "DeactivateNodeRequest", "PullMessagesRequest"}
        | {"PullMessagesResponse", "PushMessagesRequest"},
    ),
    "flwr.proto.heartbeat_pb2": ("the same", {"SendNodeHeartbeatRequest"}),
    "flwr.proto.message_pb2": (
        "the same, of the objects of a message",
        {"ConfirmMessageReceivedRequest", "ObjectTree", "PullObjectRequest"}
        | {"PushObjectRequest"},
    ),
    "flwr.proto.node_pb2": ("who calls", {"Node"}),
    "flwr.supercore.error": (
        "which refusals pass and which are final",
        {"ApiErrorCode", "FlowerError"},
    ),
    "flwr.supercore.heartbeat": ("heartbeats on a thread", {"HeartbeatSender"}),
    "flwr.supercore.inflatable.inflatable_object": (
        "a message is sent as objects, named by their hashes",
        {"get_all_nested_objects", "get_object_id", "get_object_tree"}
        | {"get_object_head_values_from_object_content"},
    ),
    "flwr.supercore.inflatable.inflatable_protobuf_utils": (
        "calls that pull, push and confirm an object",
        {"make_confirm_message_received_fn_protobuf", "make_pull_object_fn_protobuf"}
        | {"make_push_object_fn_protobuf"},
    ),
    "flwr.supercore.inflatable.inflatable_utils": (
        "a message from its objects, and what is raised when the run has ended",
        {"ObjectPullError", "ObjectPushError", "inflate_object_from_contents"}
        | {"pull_and_inflate_object_from_tree", "pull_objects", "push_objects"},
    ),
    "flwr.supercore.interceptors.http.utils": ("headers of a call", {"add_headers"}),
    "flwr.supercore.primitives.asymmetric": (
        "signatures of calls: made by the device, checked by the entrance",
        {"public_key_to_bytes", "sign_message", "verify_signature"},
    ),
    "flwr.supercore.protobuf.client": (
        "types of an interceptor",
        {"ProtobufCall", "ProtobufRequestContext"},
    ),
    "flwr.supercore.run": (
        "a run of the simulation; what the SuperLink says of one that has ended",
        {"Run", "RunNotRunningException"},
    ),
    "flwr.supercore.runtime_version_compatibility": (
        "headers that say which Flower calls",
        {"RuntimeVersionMetadata"},
    ),
    "flwr.supernode.fleet_http_client": ("the device's calls", {"FleetHttpClient"}),
    "flwr.supernode.node_auth_http_interceptor": (
        "signs the device's calls",
        {"NodeAuthHttpInterceptor"},
    ),
    # server/run: replies are read one at a time with limits, before they are decoded.
    "flwr.proto.runtime_pb2": (
        "which replies have arrived, without their content",
        {"PullAppMessagesRequest"},
    ),
    "flwr.superlink.grid": ("the grid of a deployment, not a simulation", {"HttpGrid"}),
    # server/deploy: the entrance before the SuperLink, and the SuperLink behind a token.
    "flwr.cli.constant": (
        "names in the file of credentials that `flwr` reads",
        {"ACCESS_TOKEN_STORE_KEY", "AUTHN_TYPE_STORE_KEY", "REFRESH_TOKEN_STORE_KEY"},
    ),
    "flwr.supercore.auth.typing": (
        "types of the login with a token",
        {"AccountAuthCredentials", "AccountInfo"},
    ),
    "flwr.superlink.auth_plugin": (
        "base class of the login with a token",
        {"NoOpControlAuthnPlugin"},
    ),
    "flwr.supercore.cli.flower_superexec": ("the SuperExec", {"flower_superexec"}),
    "flwr.supercore.constant": (
        "states of a node, headers, programs of a task, the simulation's federation",
        {"FLEET_HTTP_PUBLIC_KEY_HEADER", "FLEET_HTTP_SIGNATURE_HEADER"}
        | {"FLWR_COMPONENT_NAME_METADATA_KEY", "FLWR_PACKAGE_NAME_METADATA_KEY"}
        | {"FLWR_PACKAGE_VERSION_METADATA_KEY", "NOOP_FEDERATION_ID", "NodeStatus"}
        | {"SYSTEM_MESSAGE_TYPE", "TASK_TYPE_TO_APPIO_API_ADDRESS_ARG"}
        | {"TASK_TYPE_TO_COMMAND", "VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY"},
    ),
    "flwr.supercore.http_logging": ("the server's log", {"get_uvicorn_log_config"}),
    "flwr.supercore.logger": (
        "no colours in a log that is a file",
        {"console_handler", "update_console_handler"},
    ),
    "flwr.supercore.protobuf.constants": ("content type", {"PROTOBUF_MEDIA_TYPE"}),
    "flwr.supercore.superexec.executor.subprocess_executor": (
        "its `launch` is replaced: a task's token is on no command line",
        {"SubprocessExecutor"},
    ),
    "flwr.supercore.superexec.executor.types": (
        "types of `launch`",
        {"ExecutionSpec", "LaunchResult"},
    ),
    "flwr.superlink.cli": ("the process of a ServerApp", {"flwr_serverapp"}),
    "flwr.superlink.cli.flower_superlink": (
        "the SuperLink with a login of its own",
        {"SuperLinkLifespan", "_parse_superlink_lifespan_config"},
    ),
    "flwr.superlink.main": ("the same", {"create_app"}),
    # server/simulate: what `flwr-simulation` calls, without a SuperLink.
    "flwr.cli.config_utils": ("is this an app?", {"load_and_validate"}),
    "flwr.common.config": (
        "settings of the app with those of the command line",
        {"get_fused_config_from_dir", "get_project_config"},
    ),
    "flwr.simulation.run_simulation": ("the simulation", {"_run_simulation"}),
    "flwr.server.superlink.fleet.vce": (
        "its threads, as many as there are actors",
        {"vce_api"},
    ),
    "flwr.server.superlink.fleet.vce.backend": (
        "the Ray backend, which outlives its actors",
        {"raybackend"},
    ),
    "flwr.simulation.ray_transport.ray_actor": (
        "an actor, and how many a cluster has room for",
        {"ClientAppActor", "pool_size_from_resources"},
    ),
    "flwr.supercore.task_identity": (
        "a ServerApp sends messages only in a task's name",
        {"TaskIdentity"},
    ),
    "flwr.supercore.telemetry": (
        "an argument of the simulation; nothing is sent",
        {"EventType"},
    ),
}

# Attributes that Flower keeps to itself -> why.
PRIVATE = {
    "_runtime_client": "of `HttpGrid`: the connection that reads single replies",
    "__dict__['_message_id']": "of `Metadata`: a message read by hand keeps its name",
}

# Attributes of Flower's classes that are set -> why.
REPLACED = {
    "SubprocessExecutor.launch": "a task's token is on no command line",
    "TaskIdentity.run_id": "the ServerApp of a simulation is the only task",
    "TaskIdentity.task_id": "the same",
    "TaskIdentity.node_id": "the same",
    "raybackend.RayBackend": "an actor that dies is replaced, and its message is not lost",
    "vce_api.ThreadPoolExecutor": "Flower's has min(32, cores + 4) threads",
}

# Variables of the environment that Flower reads -> why they are set.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "nothing is reported to Flower's makers",
    "FLWR_DISABLE_UPDATE_CHECK": "no call to the internet",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "no package is installed for an app",
    "FLWR_HOME": "a run's files are in its own folder",
    "FLWR_LOG_LEVEL": "the log of a server",
}


def imported() -> dict[str, set[str]]:
    """Names that the package imports from Flower, by module, without the public ones."""
    found: dict[str, set[str]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                module = node.module or ""
                names = {alias.name for alias in node.names}
                if module.split(".")[0] == "flwr" and (
                    module not in PUBLIC or any(name[0] == "_" for name in names)
                ):
                    found.setdefault(module, set()).update(names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "flwr":
                        found.setdefault(alias.name, set())
    return found


def test_the_table_lists_what_is_imported() -> None:
    assert imported() == {module: names for module, (_, names) in IMPORTS.items()}


@pytest.mark.parametrize("module", IMPORTS)
def test_flower_has_what_is_imported(module: str) -> None:
    found = importlib.import_module(module)
    names = {name for name in IMPORTS[module][1] if not hasattr(found, name)}
    # What is left may be a module that nothing has imported yet.
    assert {n for n in names if not importlib.util.find_spec(f"{module}.{n}")} == set()


def defined() -> set[str]:
    """Return every name that the package itself defines or assigns."""
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def test_the_table_lists_private_attributes() -> None:
    # Of os, argparse and TensorBoard.
    others = {"_exit", "_SubParsersAction", "_actions", "_get_file_writer"}
    own, found = defined() | others, set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                if node.attr.startswith("_") and not node.attr.startswith("__"):
                    found |= {node.attr} - own
            elif isinstance(node, ast.Subscript):
                inside = ast.unparse(node)
                if ".__dict__[" in inside:
                    found.add(inside[inside.index("__dict__") :])
    assert found == set(PRIVATE)


def test_the_table_lists_what_is_set() -> None:
    found = set()
    for tree in TREES.values():
        flower = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "flwr"
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Attribute):
                        whole = ast.unparse(target)
                        if whole.split(".")[0] in flower:
                            found.add(whole)
    assert found == set(REPLACED)


def test_flower_has_the_private_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), dst_node_id=1, message_type="query")
    assert "_message_id" in message.metadata.__dict__
    assert isinstance(HttpGrid._runtime_client, property)
    assert callable(SubprocessExecutor.launch)


def test_flower_takes_no_other_database_than_sqlite() -> None:
    """As docs/scale.md says; where this fails, several machines can be tried."""
    store = SqlObjectStore(":memory:")
    assert store.database_backend == "sqlite"
    with pytest.raises(ValueError, match="sqlite"):
        SqlObjectStore("postgresql://127.0.0.1/flower")


def test_flower_reads_the_variables_that_are_set() -> None:
    texts = [p.read_text() for p in Path(flwr.__file__).parent.rglob("*.py")]
    code = "".join(ast.unparse(tree) for tree in TREES.values())
    for name in ENVIRONMENT:
        assert f'"{name}"' in "".join(texts), f"Flower does not read {name}"
        assert name in code, name
