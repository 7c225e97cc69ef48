"""LoRA adapters as data: one, or K stacked on the resident backbone.

An adapter is two dictionaries of tensors. `attached` adds adapters to the backbone's
projections for the duration of a ``with`` block; the backbone's modules are never
replaced and its weights never touched, so user B after user A equals user B alone.

A *stack* holds the adapters of K users, ``a`` [K, r, in] and ``b`` [K, out, r]. A batch
of N rows is user-major: rows ``k * N/K`` to ``(k + 1) * N/K`` belong to user k. One
batched product then serves all users:

    y += scaling * (x @ a_k^T) @ b_k^T          (Hu et al. 2022, one per user)

A single adapter is a stack of one and serves every row, whatever their number.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from ..config import LoraShape
from ..errors import IdiolectError, words_of
from ..seeds import fixed_uniform
from .backbone import Backbone, projections

# Of PEFT's settings, those that do not change what saved matrices do: how they were
# trained, and where they came from. Which projections there are, the tensors' names say.
WITHOUT_EFFECT = {
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "task_type",
    ),
    *("inference_mode", "lora_dropout", "eva_config", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("r", "lora_alpha", "use_rslora", "qalora_group_size", "megatron_core"),
    *("ensure_weight_tying", "fan_in_fan_out"),
    *("rank_pattern", "alpha_pattern"),  # read by `_pattern`
}
# Others may be set, to these. All other initialisations change the backbone's weights.
USUAL: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Of a pattern: a name or its end. Others are regular expressions, which a stranger's file
# shall not bring.
PATTERN_KEY = re.compile(r"\^?(\w|\\?\.)+")
LORA_KEY = re.compile(
    r"base_model\.model\.(?P<name>\S*\.layers\.\S+)\.lora_(?P<part>[AB])\.weight"
)


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter.

    Attributes
    ----------
    a
        Projection -> down matrix [r, in].
    b
        Projection -> up matrix [out, r].
    scaling
        alpha / rank.
    bias
        Decoder layer -> vector [d]. Times `scaling` it is added to the layer's output at
        every token: what a steering method has in place of matrices. It is never trained.
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scaling: float
    bias: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stack:
    """K adapters of one shape (see the module's text).

    Attributes
    ----------
    a
        Projection -> [K, r, in], or [1, r, in] where all users share a frozen A.
    b
        Projection -> [K, out, r].
    scaling
        alpha / rank.
    bias
        Decoder layer -> [K, d].
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scaling: float
    bias: dict[str, Tensor] = field(default_factory=dict)


def new_lora(backbone: Backbone, shape: LoraShape, seed: int, *names: object) -> Lora:
    """Return an untrained adapter: A uniform, B zero, so that it changes nothing.

    A is uniform in +-1/sqrt(in), what PEFT's Kaiming initialisation amounts to, but drawn
    from fixed bits (`seeds.fixed_uniform`): the same names give the same A on every
    device, which the shared adapter needs, because only its B travels.
    """
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, linear in projections(backbone.model, shape).items():
        bound = linear.in_features**-0.5
        size = (shape.rank, linear.in_features)
        drawn = fixed_uniform(size, seed, "lora-a", *names, name)
        a[name] = (bound * torch.from_numpy(drawn)).to(backbone.device)
        b[name] = torch.zeros(linear.out_features, shape.rank, device=backbone.device)
    return Lora(a, b, shape.scaling)


def zero_shared(backbone: Backbone, shape: LoraShape, seed: int) -> Lora:
    """Return the shared adapter before its first round."""
    return new_lora(backbone, shape, seed, "shared")


def stack(loras: Sequence[Lora]) -> Stack:
    """Stack the adapters of K users, which must have one shape.

    A stack has one scaling. Where theirs differ, B and bias are multiplied by them.
    """
    first = loras[0]
    if any(lora.scaling != first.scaling for lora in loras):
        loras = [_unscaled(lora) for lora in loras]
    a = {name: torch.stack([lora.a[name] for lora in loras]) for name in first.a}
    b = {name: torch.stack([lora.b[name] for lora in loras]) for name in first.b}
    bias = {n: torch.stack([lora.bias[n] for lora in loras]) for n in first.bias}
    return Stack(a, b, loras[0].scaling, bias)


def _unscaled(lora: Lora) -> Lora:
    """The same adapter with scaling 1."""
    b, bias = (
        {name: lora.scaling * tensor for name, tensor in part.items()}
        for part in (lora.b, lora.bias)
    )
    return Lora(lora.a, b, 1.0, bias)


def scaled(lora: Lora, strength: float) -> Lora:
    """The adapter with its change of the logits multiplied (`methods.strength`)."""
    return replace(lora, scaling=strength * lora.scaling)


def unstack(stacked: Stack) -> list[Lora]:
    """Return the users' adapters, each a copy of its own."""
    users = next(iter(stacked.b.values())).shape[0]
    return [
        Lora(
            {n: t[min(k, len(t) - 1)].detach().clone() for n, t in stacked.a.items()},
            {n: t[k].detach().clone() for n, t in stacked.b.items()},
            stacked.scaling,
        )
        for k in range(users)
    ]


def shadowed(stacked: Stack) -> Stack:
    """The K adapters of a stack, then K that change nothing: each user's reference."""
    a = {n: t if len(t) == 1 else torch.cat([t, t]) for n, t in stacked.a.items()}
    b = {n: torch.cat([t, torch.zeros_like(t)]) for n, t in stacked.b.items()}
    bias = {n: torch.cat([t, torch.zeros_like(t)]) for n, t in stacked.bias.items()}
    return Stack(a, b, stacked.scaling, bias)


class LowRank(torch.autograd.Function):
    """output + (x @ a^T) @ b^T with the rows of N user-major, and its gradients.

    What autograd would record for the same formula is right but slow: matrix products of
    which one side is as narrow as the rank run at a tenth of a CPU's speed or at half of
    it, depending on which operand is transposed. So the narrow activations are kept
    transposed, ``down`` = a x^T and ``up`` = b^T g^T, both [K, R, M], with M rows a user:

        d/dx = up^T a,   d/da = up x,   d/db = (down g)^T

    and the sum is taken in place, where a projection's output is not needed elsewhere.
    Of the R ranks only the last r are trained: gradients go to `own_a` and `own_b`, which
    `a` and, times `scaling`, `b` hold copies of. The others are the frozen reference's.
    Products are taken in the dtype of `a` and `b` (see `_products_in`); what is trained
    is float32 always, and so are the sums of its gradients over users.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scaling: float,
        *own: Tensor,
    ) -> Tensor:
        """Add the adapters [K, R, in] (or [1, R, in]) and [K, out, R] to the output."""
        down = torch.bmm(a.expand(len(b), -1, -1), _by_user(x, b).mT)
        ctx.save_for_backward(x, a, b, down)
        ctx.own, ctx.scaling = [tensor.shape for tensor in own], scaling
        if output.dtype == b.dtype:
            ctx.mark_dirty(output)
        total = output.to(b.dtype)
        total.view(len(b), -1, total.shape[-1]).baddbmm_(down.mT, b.mT)
        return total.to(output.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of output, x and the last r ranks, where they are needed."""
        x, a, b, down = ctx.saved_tensors
        (grad,) = grads
        g, a = _by_user(grad, b), a.expand(len(b), -1, -1)
        up = torch.bmm(b.mT, g.mT)
        _, needs_x, *_, needs_a, needs_b = ctx.needs_input_grad
        of_x = of_a = of_b = None
        shape_a, shape_b = ctx.own
        own = slice(-shape_b[-1], None)
        if needs_x:
            of_x = torch.bmm(up.mT, a).to(x.dtype).view_as(x)
        if needs_a:
            of_a = torch.bmm(up[:, own], _by_user(x, b)).float().sum_to_size(shape_a)
        if needs_b:
            of_b = torch.bmm(down[:, own], g).float().mul_(ctx.scaling).mT
        return grad, of_x, None, None, None, of_a, of_b


def _by_user(rows: Tensor, b: Tensor) -> Tensor:
    """Rows [N, T, d] in the dtype of the products and user by user, [K, M, d]."""
    return rows.to(b.dtype).reshape(len(b), -1, rows.shape[-1])


@contextmanager
def attached(
    backbone: Backbone, *adapters: Lora | Stack | None
) -> Iterator[Callable[[], None]]:
    """Add adapters to the backbone inside the ``with`` block.

    Several adapters add up: the reference is ``attached(backbone, shared)``, a user's
    policy ``attached(backbone, shared, personal)``. None stands for no adapter. One that
    lacks a projection of another adds nothing there. Gradients reach the last one only:
    the others are frozen.

    The block gets a function to call whenever the last adapter was changed in place:
    the hooks compute with copies, which are made once and not in each training step.
    """
    hooks, refresh = hooks_of(backbone, *adapters)
    with hooked(hooks):
        yield refresh


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules call their forward hooks inside the ``with`` block."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooks_of(
    backbone: Backbone, *adapters: Lora | Stack | None
) -> tuple[list[tuple[nn.Module, Callable[..., Any]]], Callable[[], None]]:
    """What `attached` hooks to which module, and the function that its block gets.

    They hold copies of the adapters, so who attaches for each token makes them once, and
    hooks them again and again (`hooked`).
    """
    stacks = [
        stack([entry]) if isinstance(entry, Lora) else entry
        for entry in adapters
        if entry is not None
    ]
    modules, dtype = dict(backbone.model.named_modules()), _products_in(backbone)
    _check_fit(backbone.name, modules, stacks)
    biases = [(n, s.scaling * bias) for s in stacks for n, bias in s.bias.items()]
    stacks = _completed([entry for entry in stacks if entry.b])
    joints = {
        name: tuple(part.detach().to(dtype) for part in _joined(stacks, name))
        for name in (stacks[0].b if stacks else ())
    }

    def refresh() -> None:
        for name, (a, b) in joints.items():
            own_a, own_b = stacks[-1].a[name].detach(), stacks[-1].b[name].detach()
            rank = own_b.shape[-1]
            a[:, -rank:] = own_a
            b[:, :, -rank:] = stacks[-1].scaling * own_b

    hooks = [
        (modules[name], _hook(stacks[-1], name, *joint))
        for name, joint in joints.items()
    ]
    return hooks + [(modules[n], _shift(bias)) for n, bias in biases], refresh


def _check_fit(name: str, modules: dict[str, Any], stacks: Sequence[Stack]) -> None:
    """Refuse an adapter for projections that a backbone does not have in this shape.

    Before the first hook is there: one that stayed would change every later score.
    """
    for part, a, b in ((n, s.a.get(n), b) for s in stacks for n, b in s.b.items()):
        shape = tuple(getattr(modules.get(part), "weight", torch.empty(0)).shape)
        if a is None or (b.shape[1], a.shape[2]) != shape:
            raise IdiolectError(
                f"an adapter's projection '{part}' does not fit backbone '{name}': take "
                "the backbone that it was trained on."
            )
    for part, bias in ((n, bias) for s in stacks for n, bias in s.bias.items()):
        layer = modules.get(f"{part}.input_layernorm")
        if getattr(layer, "weight", torch.empty(0)).shape != bias.shape[1:]:
            raise IdiolectError(
                f"a steering vector of layer '{part}' does not fit backbone '{name}': take "
                "the backbone that it was made on."
            )


def _shift(bias: Tensor):
    """A hook that adds bias [K, d] to a layer's output, whose rows are user-major."""

    def add(_module: object, _inputs: object, output: Tensor) -> Tensor:
        rows = output.reshape(len(bias), -1, output.shape[-1])
        return (rows + bias.unsqueeze(1).to(output)).view_as(output)

    return add


def _completed(stacks: Sequence[Stack]) -> list[Stack]:
    """The same adapters with the same projections: zeros where one lacks another's.

    A run's shared adapter may have fewer than its owner gives the own one, or more.
    """
    places = {n: (s.a[n].shape[2], b) for s in stacks for n, b in s.b.items()}
    found: list[Stack] = []
    for entry in stacks:
        a, b = dict(entry.a), dict(entry.b)
        some = next(iter(b.values()))
        users, _, rank = some.shape
        for name, (width, like) in places.items():
            if name not in b:
                a[name] = some.new_zeros(1, rank, width)
                b[name] = some.new_zeros(users, like.shape[1], rank)
        found.append(Stack(a, b, entry.scaling))
    return found


def _products_in(backbone: Backbone) -> torch.dtype:
    """Dtype of the adapters' products: the backbone's on a GPU, else float32.

    Adapters are float32, because bf16 would lose small steps. Their rounded copies are
    as good for a product as the rounded activations that it takes; on a GPU this saves
    the conversion of every activation to float32 and back, on most CPUs products in bf16
    are slower than the conversions.
    """
    return backbone.dtype if backbone.device.type == "cuda" else torch.float32


def _joined(stacks: Sequence[Stack], name: str) -> tuple[Tensor, Tensor]:
    """One adapter that does what several do: joined along the rank, scalings in B.

    With A = [A_1; A_2] and B = [s_1 B_1, s_2 B_2], B A = s_1 B_1 A_1 + s_2 B_2 A_2. One
    adapter for every row is repeated for each user of the others.
    """
    ups = [entry.scaling * entry.b[name] for entry in stacks]
    if len(stacks) == 1:
        return stacks[0].a[name], ups[0]
    users = max(map(len, ups))
    a = torch.cat([s.a[name].expand(users, -1, -1) for s in stacks], dim=1)
    return a, torch.cat([up.expand(users, -1, -1) for up in ups], dim=2)


def _hook(own: Stack, name: str, a: Tensor, b: Tensor):
    trained = own.scaling, own.a[name], own.b[name]

    def add(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return LowRank.apply(output, inputs[0], a, b, *trained)

    return add


def hash_lora(lora: Lora | None) -> str:
    """SHA-256 of names, shapes and values; the identity of a reference policy."""
    digest = hashlib.sha256()
    if lora is not None:
        digest.update(repr(lora.scaling).encode())
        for part in (lora.a, lora.b, lora.bias):
            for name in sorted(part):
                tensor = part[name].detach().cpu().float().contiguous()
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def dump_lora(lora: Lora, metadata: dict[str, str]) -> bytes:
    """An adapter, and strings kept beside it, as the bytes of a safetensors file."""
    tensors = {
        f"a.{name}": tensor.contiguous().cpu() for name, tensor in lora.a.items()
    }
    tensors |= {f"b.{name}": t.contiguous().cpu() for name, t in lora.b.items()}
    tensors |= {f"bias.{name}": t.contiguous().cpu() for name, t in lora.bias.items()}
    return save(tensors, {**metadata, "scaling": repr(lora.scaling)})


def metadata_of(data: bytes) -> dict[str, str]:
    """Metadata of a safetensors file: a length, and JSON of that length, begin it.

    Raises
    ------
    KeyError
        It has none.
    """
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]


def parse_lora(data: bytes) -> tuple[Lora, dict[str, str]]:
    """Read what `dump_lora` made.

    Raises
    ------
    ValueError
        The bytes are not such a file.
    """
    try:
        tensors = load(data)
        metadata = metadata_of(data)
        scaling = float(metadata.pop("scaling"))
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error
    a = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("a.")}
    b = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("b.")}
    bias = {n[5:]: tensor for n, tensor in tensors.items() if n.startswith("bias.")}
    return Lora(a, b, scaling, bias), metadata


def concatenate(*adapters: Lora) -> Lora:
    """One adapter that does what several do (see `_joined`)."""
    stacks = _completed([stack([one]) for one in adapters if one.b])
    joined = {name: _joined(stacks, name) for name in stacks[0].b}
    bias: dict[str, Tensor] = {}
    for one in map(_unscaled, adapters):
        for name, vector in one.bias.items():
            bias[name] = bias[name] + vector if name in bias else vector
    a = {name: a[0] for name, (a, _) in joined.items()}
    b = {name: b[0] for name, (_, b) in joined.items()}
    return Lora(a, b, 1.0, bias)


def side_by_side(policies: Sequence[Sequence[Lora]]) -> Stack:
    """K policies, each the sum of its adapters, as one stack of K.

    One that lacks a projection, or has a lower rank, is filled up with zeros.
    """
    whole = [concatenate(*adapters) for adapters in policies]
    parts = _completed([stack([one]) for one in whole])
    ranks = [next(iter(part.b.values())).shape[2] for part in parts]
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name in parts[0].b:
        more = [max(ranks) - rank for rank in ranks]
        pairs = list(zip(parts, more, strict=True))
        a[name] = torch.cat([F.pad(p.a[name], (0, 0, 0, n)) for p, n in pairs])
        b[name] = torch.cat([F.pad(p.b[name], (0, n)) for p, n in pairs])
    shapes = {name: vector for one in whole for name, vector in one.bias.items()}
    bias = {
        name: torch.stack([one.bias.get(name, torch.zeros_like(v)) for one in whole])
        for name, v in shapes.items()
    }
    return Stack(a, b, 1.0, bias)


_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RecursionError,
    SafetensorError,
)


def import_peft(folder: Path) -> Lora:
    """Read a PEFT LoRA of any rank.

    What is imported has the logits that PEFT itself would give. Settings that this code
    does not know are refused, because a later PEFT may compute something else by them.

    Raises
    ------
    IdiolectError
        No plain LoRA: another method; one that changes the backbone's own weights (PiSSA,
        OLoRA, CorDA, LoftQ, LoRA-GA); activated LoRA, DoRA, biases, trained embeddings or
        other modules; or the files are damaged.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError(f"r is {rank}, lora_alpha is {alpha:g}")
    except _UNREADABLE as error:
        raise IdiolectError(
            f"{folder} holds no PEFT adapter that can be read ({words_of(error)}): it "
            "needs adapter_config.json and adapter_model.safetensors."
        ) from error
    parts: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    unusual = _unusual(config)
    for key, tensor in tensors.items():
        found = LORA_KEY.fullmatch(key)
        if found is None:
            unusual.append(f"it holds {key}")
        elif tensor.dtype not in DTYPES:
            unusual.append(
                f"{key} is of type {str(tensor.dtype).removeprefix('torch.')}"
            )
        else:
            parts[found["part"]][found["name"]] = tensor.float()
    if unusual:
        raise IdiolectError(
            f"{folder} is not a plain LoRA ({', '.join(unusual[:3])}): only LoRA on "
            "unchanged weights of a backbone's linear projections, without biases and "
            "extra modules, can be imported."
        )
    a, b = parts["A"], parts["B"]
    ranks = {name: int(_of_pattern(config, "rank", name, rank)) for name in a | b}
    _check_pairs(folder, a, b, ranks)
    scales = {
        name: _of_pattern(config, "alpha", name, alpha)
        / (ranks[name] ** 0.5 if config.get("use_rslora") else ranks[name])
        for name in a
    }
    if set(ranks.values()) == {rank} and len(set(scales.values())) == 1:
        return Lora(a, b, next(iter(scales.values())))
    most = max(ranks.values())
    for name, one in ranks.items():  # zeros change nothing, and make the ranks equal
        a[name] = F.pad(a[name], (0, 0, 0, most - one))
        b[name] = F.pad(scales[name] * b[name], (0, most - one))
    return Lora(a, b, 1.0)


def base_of(folder: Path) -> str:
    """The name of the model that a PEFT adapter says it was made for; empty: none."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        return str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _unusual(config: dict[str, Any]) -> list[str]:
    """Settings of a PEFT adapter by which it is more than B A, added to frozen weights."""
    found = [
        f"{name}={value!r:.40}"
        for name, value in config.items()
        if value and name not in WITHOUT_EFFECT and value not in USUAL.get(name, ())
    ]
    found += _patterns(config)
    return found if config.get("peft_type") else [*found, "no peft_type"]


def _of_pattern(config: dict[str, Any], what: str, name: str, usual: float) -> float:
    """A projection's own rank or alpha, as PEFT looks it up; else the usual one.

    PEFT takes the first key that fits the end of the name as a regular expression
    (``get_pattern_key``). `_unusual` has let only names through.
    """
    for key, value in (config.get(f"{what}_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return usual


def _patterns(config: dict[str, Any]) -> list[str]:
    """What is wrong with the patterns of ranks and alphas."""
    found = {what: config.get(f"{what}_pattern") or {} for what in ("rank", "alpha")}
    if odd := [what for what, one in found.items() if not isinstance(one, dict)]:
        return [f"{odd[0]}_pattern is {found[odd[0]]!r:.60}"]
    return [
        f"{what}_pattern has {key!r:.60}: {value!r:.20}"
        for what, pattern in found.items()
        for key, value in pattern.items()
        if not PATTERN_KEY.fullmatch(key)
        or isinstance(value, bool)
        or not isinstance(value, int if what == "rank" else (int, float))
        or not 0 < value < 2**20
    ]


def _check_pairs(
    folder: Path, a: dict[str, Tensor], b: dict[str, Tensor], ranks: dict[str, int]
) -> None:
    """Each projection has A [r, in] and B [out, r], with finite numbers."""
    odd = sorted(a.keys() ^ b.keys()) or [
        name
        for name in a
        if a[name].shape[:1] != (ranks[name],)
        or b[name].shape[1:] != (ranks[name],)
        or a[name].dim() != 2
        or not (a[name].isfinite().all() and b[name].isfinite().all())
    ]
    if odd or not a:
        name = (odd or ["any"])[0]
        raise IdiolectError(
            f"{folder} is damaged, its projection '{name}' has no pair of matrices of rank "
            f"{ranks.get(name, 'r')}: copy the adapter again."
        )
