import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from idiolect.common.config import LoraShape
from idiolect.common.engine.adapters import (
    Lora,
    LowRank,
    attached,
    concatenate,
    dump_lora,
    hash_lora,
    import_peft,
    new_lora,
    parse_lora,
    scaled,
    shadowed,
    side_by_side,
    stack,
    unstack,
    zero_shared,
)
from idiolect.common.engine.backbone import FAMILIES, load_backbone, projections
from idiolect.common.engine.exports import REVEALS, export_peft
from idiolect.common.errors import IdiolectError

SHAPE = LoraShape(rank=3, alpha=6.0)


def randomised(lora: Lora, seed: int) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    b = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in lora.b.items()}
    return Lora(lora.a, b, lora.scaling)


def adapter(backbone, name: str, seed: int) -> Lora:
    return randomised(new_lora(backbone, SHAPE, 0, name), seed)


def logits(backbone, ids):
    with torch.no_grad():
        return backbone.model(ids).logits


IDS = torch.arange(3, 27).view(4, 6)


def test_an_untrained_adapter_changes_nothing(backbone):
    plain = logits(backbone, IDS)
    with attached(backbone, zero_shared(backbone, SHAPE, 0)):
        assert torch.equal(logits(backbone, IDS), plain)


def test_a_shadow_is_the_policy_without_the_own_adapters(backbone):
    shared, loras = (
        adapter(backbone, "s", 3),
        [adapter(backbone, f"u{k}", k) for k in (1, 2)],
    )
    with attached(backbone, shared, shadowed(stack(loras))):
        found = logits(backbone, IDS.repeat(2, 1))
    with attached(backbone, shared, stack(loras)):
        torch.testing.assert_close(found[:4], logits(backbone, IDS))
    with attached(backbone, shared):
        torch.testing.assert_close(found[4:], logits(backbone, IDS))


def test_the_fixed_a_is_the_same_everywhere(backbone):
    one = zero_shared(backbone, SHAPE, 5)
    assert hash_lora(one) == hash_lora(zero_shared(backbone, SHAPE, 5))
    assert hash_lora(one) != hash_lora(zero_shared(backbone, SHAPE, 6))
    name = "model.layers.0.self_attn.q_proj"
    bound = projections(backbone.model, LoraShape())[name].in_features ** -0.5
    assert one.a[name].abs().max() <= bound
    assert one.a[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_a_stack_gives_each_user_its_own_adapter(backbone):
    loras = [adapter(backbone, f"u{k}", k) for k in range(2)]
    with attached(backbone, stack(loras)):
        both = logits(backbone, IDS)
    for k, lora in enumerate(loras):
        rows = IDS[2 * k : 2 * k + 2]
        with attached(backbone, lora):
            alone = logits(backbone, rows)
        torch.testing.assert_close(both[2 * k : 2 * k + 2], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[:2], both[2:], atol=1e-2)


@pytest.mark.parametrize("users_of_a", [1, 2])
@pytest.mark.parametrize(
    "dtype, products",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_gradients_equal_those_of_the_plain_formula(users_of_a, dtype, products):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    x, weight = drawn(4, 6, 5).to(dtype), drawn(7, 5).to(dtype)
    frozen_a, frozen_b = drawn(2, 2, 5), drawn(2, 7, 2)
    a, b, pull = drawn(users_of_a, 3, 5), drawn(2, 7, 3), drawn(4, 6, 7)

    def plain(x, a, b):
        a = torch.cat([frozen_a, a.expand(2, -1, -1)], dim=1)
        b = torch.cat([frozen_b, 2 * b], dim=2)
        update = [x[2 * k : 2 * k + 2].float() @ a[k].T @ b[k].T for k in range(2)]
        return ((x @ weight.T).float() + torch.cat(update)).to(dtype)

    def ours(x, a, b):
        whole_a = torch.cat([frozen_a, a.detach().expand(2, -1, -1)], dim=1)
        whole_b = torch.cat([frozen_b, 2 * b.detach()], dim=2)
        whole = whole_a.to(products), whole_b.to(products)
        return LowRank.apply(x @ weight.T, x, *whole, 2.0, a, b)

    found = []
    for formula in (plain, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
        output = formula(*leaves)
        assert output.dtype == dtype
        gradients = torch.autograd.grad((output.float() * pull).sum(), leaves)
        found.append([output, *gradients])
    close = 1e-5 if dtype == torch.float32 else 2e-2 if products != dtype else 6e-2
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=close, atol=close)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_change_in_place_counts_after_a_refresh(backbone, frozen):
    shared = [adapter(backbone, "s", 3)] if frozen else []
    own = stack([adapter(backbone, "a", 1)])
    with attached(backbone, *shared, own) as refresh:
        before = logits(backbone, IDS)
        for tensor in (*own.a.values(), *own.b.values()):
            tensor.mul_(1.5)
        refresh()
        after = logits(backbone, IDS)
    assert not torch.allclose(before, after, atol=1e-3)
    with attached(backbone, *shared, own):
        assert torch.equal(logits(backbone, IDS), after)


def test_user_b_after_user_a_equals_user_b_alone(backbone):
    one, two = adapter(backbone, "a", 1), adapter(backbone, "b", 2)
    before = logits(backbone, IDS)
    with attached(backbone, two):
        alone = logits(backbone, IDS)
    with attached(backbone, one):
        logits(backbone, IDS)
    with attached(backbone, two):
        assert torch.equal(logits(backbone, IDS), alone)
    assert torch.equal(logits(backbone, IDS), before)


def test_adapters_come_off_after_an_error(backbone):
    before = logits(backbone, IDS)
    with pytest.raises(RuntimeError), attached(backbone, adapter(backbone, "a", 1)):
        raise RuntimeError
    assert torch.equal(logits(backbone, IDS), before)


def test_stacking_round_trip_and_shared_a(backbone):
    loras = [adapter(backbone, "same", k) for k in range(3)]
    back = unstack(stack(loras))
    assert [hash_lora(x) for x in back] == [hash_lora(x) for x in loras]


def only(lora: Lora, *parts: str) -> Lora:
    """The same adapter on some projections alone."""
    names = [name for name in lora.b if name.rpartition(".")[2] in parts]
    return Lora(
        {name: lora.a[name] for name in names},
        {name: lora.b[name] for name in names},
        lora.scaling,
    )


@pytest.mark.parametrize(
    ("below", "own"),
    [
        (("q_proj", "v_proj"), ("q_proj", "k_proj", "o_proj")),
        (("q_proj", "v_proj"), ("v_proj",)),
        (("q_proj",), ("k_proj",)),
    ],
)
def test_an_own_adapter_may_have_other_projections(
    backbone, model_folder, tmp_path, below, own
):
    """As where a run's shared adapter has fewer than the owner trains, or more."""
    whole, mine = adapter(backbone, "s", 1), adapter(backbone, "p", 2)
    silent = {n: torch.zeros_like(b) for n, b in whole.b.items()}
    expected = [
        Lora(
            x.a, {n: x.b[n] if n in only(x, *parts).b else silent[n] for n in x.b}, 2.0
        )
        for x, parts in ((whole, below), (mine, own))
    ]
    shared = replace(only(whole, *below), scaling=2.0)
    personal = replace(only(mine, *own), scaling=2.0)
    with attached(backbone, *expected):
        wanted = logits(backbone, IDS)
    with attached(backbone, shared, personal) as refresh:
        torch.testing.assert_close(logits(backbone, IDS), wanted)
        refresh()
        torch.testing.assert_close(logits(backbone, IDS), wanted)
    stacked = stack([personal])
    for tensor in (*stacked.a.values(), *stacked.b.values()):
        tensor.requires_grad_(True)
    with attached(backbone, shared, stacked):
        backbone.model(input_ids=IDS).logits.square().sum().backward()
    assert all(b.grad is not None and b.grad.any() for b in stacked.b.values())
    export_peft(tmp_path, backbone, shared, personal)
    with attached(backbone, import_peft(tmp_path)):
        torch.testing.assert_close(logits(backbone, IDS), wanted, atol=1e-4, rtol=1e-4)


def test_different_scalings_stack_and_each_user_has_the_own_one(backbone):
    one, ids = adapter(backbone, "a", 1), IDS[:1]
    loras = [scaled(one, 0.5), one, scaled(one, 7.0), scaled(one, 0.0)]
    with attached(backbone, stack(loras)):
        together = logits(backbone, ids.repeat(4, 1))
    for lora, found in zip(loras, together, strict=True):
        with attached(backbone, lora):
            torch.testing.assert_close(found[None], logits(backbone, ids))
    torch.testing.assert_close(together[3:], logits(backbone, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_round_trip_has_the_same_logits(family, model_folder, tmp_path):
    folder = model_folder(family)
    backbone = load_backbone(str(folder), "float32", "cpu", 96)
    shared = adapter(backbone, "s", 1)
    personal = scaled(adapter(backbone, "p", 2), 1.5)  # exports carry the strength
    with attached(backbone, shared, personal):
        ours = logits(backbone, IDS)
    export_peft(tmp_path, backbone, shared, personal)
    card = tmp_path / "README.md"
    assert REVEALS in card.read_text() and card.stat().st_mode & 0o777 == 0o600
    bare = hf.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(bare, tmp_path)
    with torch.no_grad():
        theirs = model(IDS).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    imported = import_peft(tmp_path)
    with attached(backbone, imported):
        torch.testing.assert_close(logits(backbone, IDS), ours, atol=1e-4, rtol=1e-4)


def test_an_adapter_made_by_peft_is_imported(backbone, model_folder, tmp_path):
    bare = hf.AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"]
    )
    model = peft.get_peft_model(bare, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        theirs = model(IDS).logits
    model.save_pretrained(tmp_path)
    lora = import_peft(tmp_path)
    assert lora.scaling == pytest.approx(6 / 4**0.5)
    with attached(backbone, lora):
        torch.testing.assert_close(logits(backbone, IDS), theirs, atol=1e-4, rtol=1e-4)


TWO = ["q_proj", "v_proj"]
PATTERNS = [
    {"rank_pattern": {"q_proj": 2}},
    {"rank_pattern": {"layers.1.self_attn.q_proj": 7, "q_proj": 2}},
    {"alpha_pattern": {"q_proj": 2}},
    {"alpha_pattern": {"^model.layers.0.self_attn.v_proj": 1}, "use_rslora": True},
    {"rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 5, "q_proj": 1.5}},
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["v_proj"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "mica"},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": [*TWO, "embed_tokens"]},
        {"target_modules": [*TWO, "lm_head"]},
        *PATTERNS,
        {"rank_pattern": {"(q|k)_proj": 2}},
        {"alpha_pattern": {".*q_proj": 2}},
        {"alora_invocation_tokens": [5]},
        {"trainable_token_indices": [1, 2]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"use_qalora": True, "qalora_group_size": 4},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()) or "plain",
)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_is_imported_exactly_or_refused(
    backbone, model_folder, tmp_path, changes
):
    def bare():
        return hf.AutoModelForCausalLM.from_pretrained(model_folder("llama"))

    settings = {"r": 4, "lora_alpha": 6, "target_modules": TWO, **changes}
    model = peft.get_peft_model(bare(), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    try:
        lora = import_peft(tmp_path)
    except IdiolectError as error:
        assert next(iter(changes)) in str(error) or "it holds" in str(error)
        assert changes not in EXACT
        return
    assert changes in EXACT
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(bare(), tmp_path)(IDS).logits
    with attached(backbone, lora):
        torch.testing.assert_close(logits(backbone, IDS), theirs, atol=1e-4, rtol=1e-4)


EXACT = [
    {},
    {"use_rslora": True},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": False},
    {"layers_to_transform": [1]},
    {"exclude_modules": ["v_proj"]},
    *PATTERNS,
]


def test_a_setting_that_this_code_does_not_know_is_refused(backbone, tmp_path):
    one = adapter(backbone, "a", 1)
    export_peft(tmp_path, backbone, one, one)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "use_next_years_lora": True}))
    with pytest.raises(IdiolectError, match="use_next_years_lora=True"):
        import_peft(tmp_path)
    path.write_text(json.dumps([settings]))
    with pytest.raises(IdiolectError, match="holds no PEFT adapter"):
        import_peft(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "half a pair", "rank", "not finite"])
def test_a_damaged_adapter_is_refused(backbone, tmp_path, damage):
    one = adapter(backbone, "a", 1)
    export_peft(tmp_path, backbone, one, one)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    if damage == "half a pair":
        del tensors[name]
    elif damage == "rank":
        tensors[name] = tensors[name][:, :2].contiguous()
    elif damage == "not finite":
        tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IdiolectError, match="copy the adapter again|can be read"):
        import_peft(tmp_path)


def test_an_adapter_of_another_backbone_is_refused_and_leaves_no_hook(backbone):
    fitting = adapter(backbone, "a", 1)
    before = logits(backbone, IDS)
    last = list(fitting.b)[-1]
    more = "model.layers.7.self_attn.q_proj"
    for a, b, names in (
        (
            {**fitting.a, more: fitting.a[last]},
            {**fitting.b, more: fitting.b[last]},
            more,
        ),
        (fitting.a, {**fitting.b, last: fitting.b[last][:-1]}, last),
        ({**fitting.a, last: fitting.a[last][:, :-1]}, fitting.b, last),
    ):
        odd = Lora(a, b, 1.0)
        for adapters in ([odd], [fitting, odd], [odd, fitting]):
            with (
                pytest.raises(IdiolectError, match=f"'{names}' does not fit"),
                attached(backbone, *adapters),
            ):
                pass
            assert torch.equal(logits(backbone, IDS), before)


def test_other_peft_methods_are_refused(backbone, tmp_path):
    one = adapter(backbone, "a", 1)
    export_peft(tmp_path, backbone, one, one)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(IdiolectError, match="use_dora"):
        import_peft(tmp_path)
    with pytest.raises(IdiolectError, match="adapter_config.json"):
        import_peft(tmp_path / "nothing")


def test_concatenation_adds_up(backbone):
    one, two = adapter(backbone, "a", 1), adapter(backbone, "b", 2)
    both = concatenate(one, Lora(two.a, two.b, 0.5))
    name = next(iter(both.a))
    update = both.scaling * both.b[name] @ both.a[name]
    expected = one.scaling * one.b[name] @ one.a[name] + 0.5 * two.b[name] @ two.a[name]
    torch.testing.assert_close(update, expected)


def test_policies_of_different_ranks_and_projections_run_side_by_side(backbone):
    """As where an adapter is tried beside the one in use, or beside none."""
    shared, mine = adapter(backbone, "s", 1), adapter(backbone, "p", 2)
    small = randomised(new_lora(backbone, LoraShape(rank=2, alpha=2.0), 0, "q"), 3)
    policies = [[shared, mine], [only(mine, "v_proj")], [shared], [small]]
    rows = IDS.repeat(2, 1)
    with attached(backbone, side_by_side(policies)):
        together = logits(backbone, rows)
    for number, policy in enumerate(policies):
        places = slice(2 * number, 2 * number + 2)
        with attached(backbone, *policy):
            alone = logits(backbone, rows[places])
        torch.testing.assert_close(together[places], alone, atol=1e-5, rtol=1e-5)


def test_bytes_round_trip_and_damage_is_named(backbone):
    lora = adapter(backbone, "a", 1)
    data = dump_lora(lora, {"user": "a"})
    loaded, metadata = parse_lora(data)
    assert hash_lora(loaded) == hash_lora(lora)
    assert metadata == {"user": "a"}
    for damaged in (data[:100], data[:-7], b""):
        with pytest.raises(ValueError):
            parse_lora(damaged)


def test_query_and_value_only(backbone, model_folder):
    names = projections(backbone.model, LoraShape(targets="q,v"))
    assert {n.rsplit(".", 1)[1] for n in names} == {"q_proj", "v_proj"}
    fused = load_backbone(str(model_folder("phi3")), "float32", "cpu", 96)
    with pytest.raises(IdiolectError, match=r"lora\.targets=all"):
        projections(fused.model, LoraShape(targets="q,v"))


@pytest.mark.parametrize(
    "text",
    [
        '{"r": 2, "lora_alpha": Infinity}',
        '{"r": 2, "lora_alpha": NaN}',
        '{"r": 0, "lora_alpha": 1}',
        "[" * 100_000,
    ],
)
def test_an_adapter_with_settings_that_no_layer_can_have_is_refused(tmp_path, text):
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(IdiolectError, match="holds no PEFT adapter that can be read"):
        import_peft(tmp_path)
