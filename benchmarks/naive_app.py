"""A Flower app as one would first write it: the peer of `simulation.py`.

    python benchmarks/naive_app.py --users N

One user per node; every message loads the backbone, wraps it with peft and runs a plain
loop. The work is that of the main job with one method: four rounds of federated averaging
of a LoRA adapter (fp32, A and B), then each user trains an adapter of its own for three
epochs and measures the held-out text. Prints the seconds and the mean NLL.

Uses Flower's in-process `run_simulation`, which has no SuperLink to start: an advantage
for this peer.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROUNDS, BATCH, EPOCHS = 4, 8, 3


def write_users(folder: Path, count: int) -> None:
    """Write one file of (prompt, target) pairs per user."""
    from idiolect.common.config import parse
    from idiolect.common.data.load import load_dataset

    config = parse(
        {"users": count, "development-users": 0, "personalise.learning-rates": "3e-3"}
    )
    for k, user in enumerate(load_dataset(config).users):
        parts = {"history": user.history, "held-out": user.held_out}
        texts = {
            name: [(item.prompt.text, item.target) for item in items]
            for name, items in parts.items()
        }
        (folder / f"{k}.json").write_text(json.dumps(texts))


def model_and_rows(folder: str, node: int, part: str) -> tuple[Any, list[Any]]:
    """Load the backbone, wrap it, and encode one user's text."""
    from peft import LoraConfig, get_peft_model

    from idiolect.common.data.types import Item, Prompt
    from idiolect.common.engine.backbone import load_backbone

    load_backbone.cache_clear()  # a naive app keeps nothing between messages
    backbone = load_backbone("tiny", "float32", "cpu", 512)
    texts = json.loads((Path(folder) / f"{node}.json").read_text())[part]
    rows = [
        backbone.encode(Item(str(k), Prompt("", prompt, ""), target))
        for k, (prompt, target) in enumerate(texts)
    ]
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(backbone.model, lora), rows


def batch_loss(model: Any, batch: list[Any]) -> Any:
    """Mean NLL of a padded batch, as transformers computes it."""
    import torch

    longest = max(len(row.ids) for row in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(batch):
        tokens = torch.tensor(row.ids)
        ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        labels[i, row.prompt_length : len(tokens)] = tokens[row.prompt_length :]
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def fit(model: Any, rows: list[Any], epochs: int) -> None:
    """Plain AdamW."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(epochs):
        for start in range(0, len(rows), BATCH):
            batch_loss(model, rows[start : start + BATCH]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def apps(folder: str, users: int) -> tuple[Any, Any]:
    """Return the ServerApp and the ClientApp."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    client, server = ClientApp(), ServerApp()

    def prepared(message: Message, context: Context) -> tuple[Any, list[Any]]:
        node = int(context.node_config["partition-id"])
        model, rows = model_and_rows(folder, node, "history")
        record = message.content.array_records.get("arrays")
        if record:
            set_peft_model_state_dict(model, record.to_torch_state_dict())
        return model, rows

    @client.train()
    def train(message: Message, context: Context) -> Message:
        model, rows = prepared(message, context)
        fit(model, rows, 1)
        arrays = ArrayRecord(get_peft_model_state_dict(model))
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        import torch

        model, rows = prepared(message, context)
        fit(model, rows, EPOCHS)
        node = int(context.node_config["partition-id"])
        _, held_out = model_and_rows(folder, node, "held-out")
        with torch.no_grad():
            nll = float(batch_loss(model, held_out))
        content = RecordDict({"metrics": MetricRecord({"nll": nll})})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        arrays: ArrayRecord | None = None
        for kind in ["train"] * ROUNDS + ["evaluate"]:
            content = RecordDict({"arrays": arrays} if arrays else {})
            while len(nodes := list(grid.get_node_ids())) < users:
                time.sleep(0.1)
            replies = list(
                grid.send_and_receive(
                    [Message(content, node, kind, group_id=kind) for node in nodes]
                )
            )
            if bad := [reply for reply in replies if reply.has_error()]:
                raise RuntimeError(bad[0].error)
            if kind == "evaluate":
                values = [r.content.metric_records["metrics"]["nll"] for r in replies]
                Path(folder, "nll").write_text(json.dumps(values))
                return
            states = [
                r.content.array_records["arrays"].to_torch_state_dict() for r in replies
            ]
            mean = {
                name: sum(state[name] for state in states) / len(states)
                for name in states[0]
            }
            arrays = ArrayRecord(mean)

    return server, client


def main() -> None:
    """Run it and print one line of JSON."""
    parser = argparse.ArgumentParser(description="The naive peer.")
    parser.add_argument("--users", type=int, default=16)
    given = parser.parse_args()
    from flwr.simulation import run_simulation

    with TemporaryDirectory() as folder:
        write_users(Path(folder), given.users)
        server, client = apps(folder, given.users)
        began = time.perf_counter()
        run_simulation(
            server,
            client,
            given.users,
            backend_config={
                "client_resources": {"num_cpus": 1},
                "init_args": {"num_cpus": os.cpu_count() or 1},
            },
        )
        seconds = time.perf_counter() - began
        values = json.loads(Path(folder, "nll").read_text())
    found = {"users": given.users, "seconds": seconds}
    found |= {"nll": sum(values) / len(values)}
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
