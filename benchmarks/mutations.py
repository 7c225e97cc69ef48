"""Do the tests notice wrong code? Break the code in known ways and see a test fail.

    python benchmarks/mutations.py          all, then writes docs/mutations.md
    python benchmarks/mutations.py delta    only those with "delta" in their title; of
                                            the others the page says what it said

Each mutation is a mistake that somebody could make: it changes one place of a copy of
the code, and the one test named beside it must then fail. The checkout itself is never
changed. A mutation that no test notices, or that cannot be applied, ends the command
with exit code 1. Takes about twenty minutes of one core.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutations.md"
PACKAGES = ("client", "common", "server")
LONGEST = 300  # seconds; a mutation that makes a test hang is not noticed by it


@dataclass(frozen=True)
class Mutation:
    """One deliberate mistake.

    Attributes
    ----------
    title
        What is wrong then.
    file
        Where, from the root of the repository.
    old, new
        Text that occurs exactly once in the file, and what replaces it.
    test
        Name of the test that must fail; of a parametrised one any case may.
    place
        Its file; by default the one that mirrors `file`.
    """

    title: str
    file: str
    old: str
    new: str
    test: str
    place: str = ""

    @property
    def node(self) -> str:
        """The test as pytest names it."""
        folder, _, name = self.file.rpartition("/")
        return f"{self.place or f'tests/{folder}/test_{name}'}::{self.test}"


MUTATIONS = (
    # --- the losses ------------------------------------------------------------------
    Mutation(
        "C-BPO: the sign of delta is flipped",
        "common/methods/c_bpo.py",
        "g_positive = positive.reward(beta) - delta\n"
        "    g_unlabeled = unlabeled.reward(beta) - delta",
        "g_positive = positive.reward(beta) + delta\n"
        "    g_unlabeled = unlabeled.reward(beta) + delta",
        "test_c_bpo_closed_form",
    ),
    Mutation(
        "C-BPO: delta already contains the rewards of this step",
        "common/methods/c_bpo.py",
        "delta = boundary(means).unsqueeze(-1)\n    g_positive",
        "delta = boundary(\n"
        "        moved(means, positive, unlabeled, beta, settings.ema)\n"
        "    ).unsqueeze(-1)\n    g_positive",
        "test_c_bpo_closed_form",
    ),
    Mutation(
        "C-BPO: the overlap alpha is not subtracted",
        "common/methods/c_bpo.py",
        "unlabeled.weight) - alpha * overlap",
        "unlabeled.weight)",
        "test_c_bpo_closed_form",
    ),
    Mutation(
        "C-BPO: the negative part is not divided by 1 - alpha",
        "common/methods/c_bpo.py",
        "pure.clamp(min=0) / (1 - alpha)",
        "pure.clamp(min=0)",
        "test_c_bpo_closed_form",
    ),
    Mutation(
        "C-BPO: the negative part may become negative",
        "common/methods/c_bpo.py",
        "pure.clamp(min=0) / (1 - alpha)",
        "pure / (1 - alpha)",
        "test_c_bpo_clamp_leaves_the_positive_part",
    ),
    Mutation(
        "C-BPO: one running mean over both classes instead of one each",
        "common/methods/c_bpo.py",
        'if settings.boundary == "pooled":',
        'if settings.boundary != "nothing":',
        "test_c_bpo_keeps_one_mean_per_class_or_one_for_both",
    ),
    Mutation(
        "C-BPO: known negatives are rewarded",
        "common/methods/c_bpo.py",
        "-F.logsigmoid(-(negative.reward(beta) - delta))",
        "-F.logsigmoid(negative.reward(beta) - delta)",
        "test_known_negatives_stand_outside_the_clamp_and_delta",
    ),
    Mutation(
        "The weights of items are ignored",
        "common/engine/objectives.py",
        "mean = (weight * values).sum(-1) / total.clamp(min=1e-12)",
        "mean = values.mean(-1)",
        "test_c_bpo_weights_unlabeled_items",
        "tests/common/methods/test_c_bpo.py",
    ),
    Mutation(
        "Running means are not corrected for their start at zero",
        "common/engine/objectives.py",
        "positive = means.positive / means.positive_weight.clamp(min=1e-12)",
        "positive = means.positive",
        "test_delta_lags_one_step_and_carries_no_gradient",
        "tests/common/methods/test_c_bpo.py",
    ),
    Mutation(
        "Running means move where a user has no items",
        "common/engine/objectives.py",
        "torch.where(seen, new_mean, mean), torch.where(seen, new_weight, weight)",
        "new_mean, new_weight",
        "test_a_user_without_items_keeps_the_means",
    ),
    Mutation(
        "BCO: one mean of the losses per class instead of one over all items",
        "common/methods/bco.py",
        "value = average(-F.logsigmoid(g), pooled.weight)",
        "loss, n = -F.logsigmoid(g), positive.logp.shape[-1]\n"
        "    value = average(loss[..., :n], positive.weight) / 2\n"
        "    value = value + average(loss[..., n:], unlabeled.weight) / 2",
        "test_bco_pools_losses_and_rewards",
    ),
    Mutation(
        "BCO does not learn to avoid what is disliked",
        "common/methods/bco.py",
        "settings.disliked_weight * average(disliked, batch.negative.weight)",
        "0 * average(disliked, batch.negative.weight)",
        "test_known_negatives_are_a_mean_of_their_own_and_no_part_of_delta",
    ),
    Mutation(
        "C-BPO: known negatives have no weight of their own",
        "common/methods/c_bpo.py",
        "settings.disliked_weight * average(disliked, negative.weight)",
        "average(disliked, negative.weight)",
        "test_known_negatives_stand_outside_the_clamp_and_delta",
    ),
    Mutation(
        "Weights of tokens: a rare one weighs as much as a usual one",
        "common/unlabeled/tokens.py",
        "np.maximum(expected - seen, 0.0) / (expected + 1)",
        "np.maximum(expected - seen, 0.0) / np.maximum(expected, 1e-12)",
        "test_weights_by_hand",
    ),
    Mutation(
        "Weights of tokens: lost before they are trained on",
        "common/methods/c_bpo.py",
        "aux=[replace(one, weights=w) for one, w in both]",
        "aux=[one for one, w in both]",
        "test_weights_of_tokens_are_those_of_c_bpo_alone",
        "tests/common/methods/test_personalise.py",
    ),
    Mutation(
        "The bound of the mixture share is the mean of u/p",
        "common/data/functionals.py",
        "min(1.0, float((u[p > 0] / p[p > 0]).min()))",
        "min(1.0, float((u[p > 0] / p[p > 0]).mean()))",
        "test_the_bound_is_the_largest_share_that_leaves_a_distribution",
    ),
    Mutation(
        "Held-out probabilities are not calibrated",
        "common/unlabeled/heldout.py",
        "found = calibrated(logits, labels, balance)",
        "found = 1 / (1 + np.exp(-logits))",
        "test_identical_classes_have_one_half_for_any_length",
    ),
    Mutation(
        "Near items are the far ones",
        "common/unlabeled/nearness.py",
        "logs + strength * near",
        "logs - strength * near",
        "test_near_is_about_the_same_and_far_is_not",
    ),
    Mutation(
        "Nearness compares what was written",
        "common/unlabeled/nearness.py",
        "return [item.prompt.input.strip() for item in items]",
        "return [item.target.strip() for item in items]",
        "test_items_without_an_input_are_neither_near_nor_far",
    ),
    Mutation(
        "A trial adapter has seen what its strength is fitted on",
        "common/methods/strength.py",
        "if i % FOLDS != number]",
        "if FOLDS]",
        "test_folds_keep_every_text_from_one_trial",
    ),
    Mutation(
        "What fits the strength of an owner's adapter also judges it",
        "client/owner/judging.py",
        "if item.id not in older)",
        "if item.id)",
        "test_what_judges_an_adapter_did_not_fit_its_strength",
        "tests/client/owner/test_owner.py",
    ),
    Mutation(
        "A steering vector leads to the others",
        "common/methods/steer.py",
        "config.steer.strength * (own - others)",
        "config.steer.strength * (others - own)",
        "test_the_vector_is_the_difference_of_mean_hidden_states",
    ),
    Mutation(
        "Outputs are judged where authors cannot be told apart",
        "server/study/judge.py",
        'difference["ci95"][0] > MARGIN',
        'difference["ci95"][0] > -1',
        "test_authors_who_write_alike_are_not_and_no_output_is_judged",
    ),
    Mutation(
        "The judge of authors is fitted on the users it judges",
        "server/study/judge.py",
        "judge = fit([_history(user) for user in authors], size, seed)",
        "judge = fit([_history(user) for user in users], size, seed)",
        "test_the_judge_is_fitted_on_others_alone",
    ),
    Mutation(
        "BCO: one running mean per class instead of one over all items",
        "common/methods/bco.py",
        "moved(means, pooled, pooled, settings.beta, settings.ema)",
        "moved(means, positive, unlabeled, settings.beta, settings.ema)",
        "test_bco_pools_losses_and_rewards",
    ),
    Mutation(
        "KTO: the divergence z carries a gradient",
        "common/methods/kto.py",
        "shift.clamp(min=0).detach()",
        "shift.clamp(min=0)",
        "test_kto_divergence_carries_no_gradient",
    ),
    Mutation(
        "KTO: the divergence z may become negative",
        "common/methods/kto.py",
        "shift.clamp(min=0).detach()",
        "shift.detach()",
        "test_kto_closed_form_with_positive_and_negative_divergence",
    ),
    Mutation(
        "SFT: the mean is per item instead of per token",
        "common/methods/sft.py",
        "tokens = (positive.weight * positive.tokens).sum(-1)",
        "tokens = positive.weight.sum(-1)",
        "test_sft_is_nll_per_token",
    ),
    # --- GGUF files ------------------------------------------------------------------
    Mutation(
        "GGUF: rows of the keys are put back by the number of query heads",
        "common/gguf/model.py",
        'heads = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"',
        'heads = "num_attention_heads"',
        "test_an_f32_file_has_the_logits_of_its_model",
    ),
    Mutation(
        "GGUF: norms of Gemma keep the one that is added to them",
        "common/gguf/model.py",
        'less_one = kind in GEMMAS and name.endswith("_norm.weight")',
        "less_one = False",
        "test_an_f32_file_has_the_logits_of_its_model",
    ),
    Mutation(
        "GGUF: a setting that nothing reads is passed over",
        "common/gguf/model.py",
        "if left := sorted(set(own) - self.asked):",
        "if left := sorted(set(own) - self.asked)[:0]:",
        "test_a_setting_that_is_missing_or_unknown_is_named",
    ),
    Mutation(
        "GGUF: a tensor may lie beyond the end of the file",
        "common/gguf/header.py",
        "if end > len(self.data):",
        "if end > 2**70:",
        "test_what_cannot_be_is_refused_without_much_memory",
    ),
    Mutation(
        "GGUF: a conversion is known by its own files, not by the file's bytes",
        "common/engine/model_folder.py",
        "if found := gguf.record_of(folder):",
        "if found := {}:",
        "test_the_identity_is_that_of_the_bytes",
        "tests/common/gguf/test_convert.py",
    ),
    # --- alpha -----------------------------------------------------------------------
    Mutation(
        "alpha: directions of the span are not as long as they were",
        "common/unlabeled/overlap.py",
        "vectors[:, kept] * np.sqrt(values[kept])",
        "vectors[:, kept]",
        "test_coordinates_in_the_span_keep_all_products",
    ),
    Mutation(
        "alpha: one user's items are judged in another user's folds",
        "common/unlabeled/alpha.py",
        'numpy_generator(config.seed, "overlap", user.id)',
        'numpy_generator(config.seed, "overlap")',
        "test_alpha_is_kept_for_its_user_its_set_and_its_seed",
    ),
    Mutation(
        "Stale alpha: what is kept is found whatever the embeddings' reference was",
        "common/unlabeled/alpha.py",
        "return reference.once(",
        "return reference.bare.once(",
        "test_alpha_from_embeddings_is_kept_for_its_reference",
    ),
    Mutation(
        "alpha: items are judged by a classifier that was fitted on them",
        "common/unlabeled/overlap.py",
        "features[~held], labels[~held], balance[~held], features[held]",
        "features, labels, balance, features[held]",
        "test_cross_fitting_keeps_alpha_up_with_more_dimensions_than_items",
    ),
    Mutation(
        "alpha: the larger class weighs more",
        "common/unlabeled/overlap.py",
        "np.full(len(target), 0.5 / len(target)), 0.5 * weights / weights.sum()",
        "np.ones(len(target)), weights",
        "test_class_sizes_do_not_matter",
    ),
    Mutation(
        "alpha: the probability of the wrong class",
        "common/unlabeled/overlap.py",
        "np.r_[np.ones(len(target)), -np.ones(len(unlabeled))]",
        "np.r_[-np.ones(len(target)), np.ones(len(unlabeled))]",
        "test_alpha_rises_with_the_true_overlap",
    ),
    Mutation(
        "alpha: not kept below 0.9, where 1 / (1 - alpha) explodes",
        "common/unlabeled/overlap.py",
        "float(np.clip(mean, 0.0, HIGHEST))",
        "float(mean)",
        "test_alpha_never_exceeds_its_highest_value",
    ),
    # --- scores ----------------------------------------------------------------------
    Mutation(
        "Wrong shift of the labels: position t scores the token at t",
        "common/engine/layout.py",
        "shift = begin - s.start - 1",
        "shift = begin - s.start",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "Prompt tokens are scored too",
        "common/engine/layout.py",
        "for i in range(prompt, s.end)",
        "for i in range(s.start + 1, s.end)",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "A token after a shared beginning does not see it",
        "common/engine/layout.py",
        "seen = (distance >= 0) & (distance < (window or distance.shape[2]))",
        "seen = (distance >= 0) & (distance < self.query.shape[1])",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "A sliding window is forgotten where rows share a beginning",
        "common/engine/layout.py",
        'window = rest.get("sliding_window")',
        "window = None",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "Positions begin again after a shared beginning",
        "common/engine/layout.py",
        "line.positions.extend(range(s.start, s.end))",
        "line.positions.extend(range(s.end - s.start))",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "A row may share the token that predicts its completion",
        "common/engine/layout.py",
        "segments([ids for ids, _ in rows], [length - 1 for _, length in rows])",
        "segments([ids for ids, _ in rows], [length for _, length in rows])",
        "test_scores_and_gradients_are_those_of_rows_alone",
    ),
    Mutation(
        "A user's line is filled up with another user's numbers",
        "common/engine/layout.py",
        '"key": _filled(key, [part[0] for part in key]),',
        '"key": _filled(key, [0 for part in key]),',
        "test_an_overflowing_user_does_not_touch_the_others",
        "tests/common/engine/test_training.py",
    ),
    Mutation(
        "Soft-capping of the logits (Gemma) is dropped",
        "common/engine/backbone.py",
        "return logits if cap is None else cap * torch.tanh(logits / cap)",
        "return logits",
        "test_logp_equals_the_whole_model",
        "tests/common/engine/test_scoring.py",
    ),
    Mutation(
        "The padding before shorter prompts is attended to",
        "common/engine/scoring.py",
        "[0] * (longest - len(p)) + [1] * len(p)",
        "[1] * longest",
        "test_greedy_generation_equals_the_obvious_loop",
    ),
    Mutation(
        "The embedding is that of the states which predict the completion",
        "common/engine/scoring.py",
        "written = layout.predicting + 1",
        "written = layout.predicting",
        "test_an_embedding_is_the_mean_state_of_the_completion",
    ),
    Mutation(
        "What the lower layers compute lacks the shared adapter",
        "common/engine/lower.py",
        "attached(backbone, shared)",
        "attached(backbone)",
        "test_scores_and_gradients_are_those_of_all_layers",
    ),
    Mutation(
        "Memory is planned as if all layers were trained",
        "common/engine/memory.py",
        "config.num_hidden_layers - saving.depth - saving.recompute",
        "config.num_hidden_layers - saving.recompute",
        "test_recomputed_upper_layers_change_no_bit",
        "tests/common/engine/test_lower.py",
    ),
    Mutation(
        "A recomputed layer computes its kept products again",
        "common/engine/memory.py",
        "for at, name, _ in stays if at == number]",
        "for at, name, _ in stays if at < 0]",
        "test_kept_products_are_not_computed_again",
    ),
    Mutation(
        "A block's gradient is that of the first block",
        "common/engine/frozen.py",
        "flat.addmm_(rows[:, part], block)",
        "flat.addmm_(rows[:, : len(block)], block)",
        "test_blocks_add_up",
    ),
    Mutation(
        "Gemma's embedding is not scaled where it is widened",
        "common/engine/frozen.py",
        "return rows if scale is None else rows * torch.tensor(scale)",
        "return rows",
        "test_every_family_has_the_numbers_of_a_float32_copy",
    ),
    Mutation(
        "A norm in float32 is rounded with the rest",
        "common/engine/model_folder.py",
        'return kinds.pop() if len(kinds) == 1 else ""',
        'return min(kinds) if kinds else ""',
        "test_other_models_are_loaded_as_before",
        "tests/common/engine/test_frozen.py",
    ),
    Mutation(
        "A budget of memory that cannot be kept is passed over",
        "common/engine/training.py",
        "if settings.memory and needed > budget:",
        "if False:",
        "test_a_budget_that_cannot_be_kept_is_refused_with_one_that_can",
    ),
    Mutation(
        "Weights are given back that were written to, or have no file",
        "common/engine/mapped.py",
        'mapped and rest[0] == "0":',
        "rest:",
        "test_nothing_is_given_back_of_weights_that_are_not_a_clean_file",
    ),
    Mutation(
        "A kept product is the one that adapters were added to",
        "common/engine/memory.py",
        "            values[module].copy_(output)  # adapters are added to the other\n",
        "            values[module] = output\n",
        "test_recomputed_layers_change_no_bit_of_any_gradient",
    ),
    Mutation(
        "The head of a wide vocabulary forgets that logits are capped",
        "common/engine/scoring.py",
        "            if needed and cap is not None:",
        "            if False:",
        "test_the_head_of_a_wide_vocabulary_is_exact",
    ),
    Mutation(
        "Stale cache: the key leaves out the shared adapter",
        "common/engine/reference.py",
        "{self.backbone.dtype} {self.hash}",
        "{self.backbone.dtype}",
        "test_cache_computes_once_and_never_returns_a_stale_score",
    ),
    Mutation(
        "Stale cache: the key leaves out where the prompt ends",
        "common/engine/reference.py",
        '{item.prompt_length} {len(item.ids)} "',
        '{len(item.ids)} "',
        "test_cache_computes_once_and_never_returns_a_stale_score",
    ),
    Mutation(
        "Stale cache: the key leaves out the backbone's weights",
        "common/engine/reference.py",
        "{self.backbone.hash} {self.backbone.dtype}",
        "{self.backbone.dtype}",
        "test_cache_tells_backbones_and_dtypes_apart",
    ),
    Mutation(
        "Stale cache: the hash of an adapter leaves out B",
        "common/engine/adapters.py",
        "for part in (lora.a, lora.b, lora.bias):",
        "for part in (lora.a,):",
        "test_cache_computes_once_and_never_returns_a_stale_score",
        "tests/common/engine/test_reference.py",
    ),
    # --- training --------------------------------------------------------------------
    Mutation(
        "A user who has finished keeps moving with the others",
        "common/engine/training.py",
        "    if step >= steps:\n        return 0.0\n",
        "",
        "test_k_users_equal_k_runs",
    ),
    Mutation(
        "Leaked optimiser state: the second moment is shared by the stack",
        "common/engine/training.py",
        "(1 - decay2) * slope.square()",
        "(1 - decay2) * slope.square().mean(0, keepdim=True)",
        "test_k_users_equal_k_runs",
    ),
    Mutation(
        "Leaked optimiser state: moments of a finished user go on",
        "common/engine/training.py",
        "before.copy_(torch.where(active, first, before))",
        "before.copy_(first)",
        "test_adam_step_matches_torch_per_user_and_stops_the_finished",
    ),
    Mutation(
        "The gradient is clipped over the whole stack instead of per user",
        "common/engine/training.py",
        "norm = gradient.norm(dim=1, keepdim=True)",
        "norm = gradient.norm()",
        "test_adam_step_matches_torch_per_user_and_stops_the_finished",
    ),
    Mutation(
        "Adam: the first moment is not corrected for its start at zero",
        "common/engine/training.py",
        "(first / (1 - decay1**t))",
        "first",
        "test_adam_step_matches_torch_per_user_and_stops_the_finished",
    ),
    Mutation(
        "Every user of a stack gets the first one's alpha",
        "common/engine/training.py",
        "torch.tensor([one.alpha for one in data])",
        "torch.tensor([data[0].alpha for _ in data])",
        "test_k_users_equal_k_runs",
    ),
    Mutation(
        "Accumulation: only the first microbatch gives a gradient",
        "common/engine/training.py",
        "zip(passes, coefficients.split(sizes, dim=1), strict=True)",
        "zip(passes[:1], coefficients.split(sizes, dim=1), strict=False)",
        "test_accumulation_changes_nothing",
    ),
    # --- adapters --------------------------------------------------------------------
    Mutation(
        "Adapters stay attached after an error",
        "common/engine/adapters.py",
        "    try:\n        yield\n    finally:\n"
        "        for handle in handles:\n            handle.remove()",
        "    yield\n    for handle in handles:\n        handle.remove()",
        "test_adapters_come_off_after_an_error",
    ),
    Mutation(
        "User k of a stack gets B of user k + 1",
        "common/engine/adapters.py",
        "baddbmm_(down.mT, b.mT)",
        "baddbmm_(down.mT, b.roll(-1, 0).mT)",
        "test_a_stack_gives_each_user_its_own_adapter",
    ),
    Mutation(
        "The scaling of LoRA is dropped",
        "common/engine/adapters.py",
        "ups = [entry.scaling * entry.b[name] for entry in stacks]",
        "ups = [entry.b[name] for entry in stacks]",
        "test_an_adapter_made_by_peft_is_imported",
    ),
    Mutation(
        "Every step of a training computes with the adapter of the first one",
        "common/engine/training.py",
        "            refresh()\n",
        "",
        "test_one_steps_of_sft_equal_torch_adamw",
    ),
    Mutation(
        "The gradient of B forgets the scaling",
        "common/engine/adapters.py",
        ".mul_(ctx.scaling)",
        "",
        "test_gradients_equal_those_of_the_plain_formula",
    ),
    Mutation(
        "The gradient of A is that of another user's rows",
        "common/engine/adapters.py",
        "torch.bmm(up[:, own], _by",
        "torch.bmm(up[:, own].roll(-1, 0), _by",
        "test_gradients_equal_those_of_the_plain_formula",
    ),
    Mutation(
        "The gradient of x forgets the adapters",
        "common/engine/adapters.py",
        "of_x = torch.bmm(up.mT, a).to(x.dtype).view_as(x)",
        "of_x = torch.zeros_like(x)",
        "test_gradients_equal_those_of_the_plain_formula",
    ),
    # --- servers on 127.0.0.1 ----------------------------------------------------------
    Mutation(
        "A server on 127.0.0.1 answers to any name",
        "client/local/guard.py",
        "    if host not in names:",
        "    if not host:",
        "test_another_hosts_name_is_refused_even_with_the_token",
    ),
    Mutation(
        "Another web page may ask if it has the token",
        "client/local/guard.py",
        '    if origin not in ("", f"http://{host}") or (elsewhere',
        "    if (elsewhere",
        "test_a_foreign_origin_is_refused_even_with_the_token",
    ),
    Mutation(
        "The link of the owner's page works again and again",
        "client/local/guard.py",
        '        entry.code = ""\n',
        "",
        "test_the_link_works_once_and_gives_a_cookie_bound_to_the_room",
    ),
    Mutation(
        "A form of another page can send a body",
        "client/local/guard.py",
        "    if kind not in kinds:\n        raise Refused(415",
        "    if not kinds:\n        raise Refused(415",
        "test_what_a_form_can_send_is_refused",
    ),
    Mutation(
        "The beginning of a stop text is shown before it is one",
        "common/engine/pieces.py",
        "seen if whole else seen[: len(seen) - begun(seen, stops)]",
        "seen",
        "test_no_part_of_a_stop_is_shown_before_it_is_known",
    ),
    Mutation(
        "A letter is shown before the mark that joins it",
        "common/engine/pieces.py",
        "        if not joins(text[place - 1], text[place]):\n            return place",
        "        return place + 1",
        "test_no_part_of_a_sign_is_shown",
    ),
    # --- audits --------------------------------------------------------------------
    Mutation(
        "The audited sums have the noise of all members, those of the server's included",
        "server/audit/mechanism.py",
        "    return terms(clip, z / clip, None, most, required), required - corrupt",
        "    return terms(clip, z / clip, None, most, required), most",
        "test_the_noise_of_the_sums_is_that_of_the_members_who_are_honest",
        "tests/server/audit/test_audit.py",
    ),
    # --- the wire ----------------------------------------------------------------------
    Mutation(
        "Updates are rounded to nearest: small coordinates are lost every round",
        "common/protocol/quantization.py",
        "if random is None:",
        "if random is not None:",
        "test_random_rounding_is_right_on_average",
    ),
    Mutation(
        "A user's update takes the scales of another user's",
        "common/protocol/quantization.py",
        "{name: array[k] for name, array in rows.items()},",
        "{name: array[k - 1] for name, array in rows.items()},",
        "test_each_user_has_a_scale_and_bits_of_its_own",
    ),
    # --- prompts ---------------------------------------------------------------------
    Mutation(
        "Long inputs are cut on the right",
        "common/engine/wording.py",
        "return text[max(1, spans[min(tokens, len(spans)) - 1][1]) :] if spans",
        "return text[: -max(1, spans[min(tokens, len(spans)) - 1][1])] if spans",
        "test_long_inputs_lose_their_left_only",
        "tests/common/engine/test_backbone.py",
    ),
    Mutation(
        "Completions have no end of sequence",
        "common/engine/wording.py",
        "text = self.gap + text + self.follow",
        "text = self.gap + text",
        "test_encoding_is_prompt_then_completion_then_end",
        "tests/common/engine/test_backbone.py",
    ),
    # --- one user's device -----------------------------------------------------------
    Mutation(
        "Rounding decides whether the reference prefers a text to itself",
        "common/methods/evaluation.py",
        "same = policy == [reference.shared]",
        "same = False",
        "test_base_ignores_the_shared_adapter_and_shared_has_no_reward",
    ),
    Mutation(
        "A user trains against own items in the unlabeled set",
        "common/unlabeled/draws.py",
        "if entry.owner != user.id and entry.item.target not in own_texts",
        "if entry.item.target not in own_texts",
        "test_own_items_are_left_out_of_the_unlabeled_set",
    ),
    Mutation(
        "A user's own vote stays in the unlabeled set",
        "common/unlabeled/draws.py",
        "entry.weight - float(v) - floor for entry, v in",
        "entry.weight - floor for entry, _ in",
        "test_leave_one_out_is_the_sum_of_the_others_votes",
    ),
    Mutation(
        "Votes are not clipped",
        "common/unlabeled/votes.py",
        "(votes / max(norm, 1.0))",
        "votes",
        "test_a_vote_has_norm_at_most_one",
    ),
    Mutation(
        "alpha is estimated where the unlabeled set is no population",
        "common/unlabeled/sets.py",
        'return settings.kind in ("others", "anonymised")',
        "return True",
        "test_alpha_is_a_share_only_where_people_wrote_the_text",
    ),
    Mutation(
        "The update of the shared adapter is not clipped",
        "common/methods/shared.py",
        "return clip_rows(rows, config.adapt.clip if clip is None else clip)",
        "return rows",
        "test_shared_update_is_clipped_per_user_and_leaves_a_alone",
    ),
    Mutation(
        "The update is clipped by its largest projection, not by all together",
        "common/methods/shared.py",
        "torch.stack(squares).sum(0).sqrt()",
        "torch.stack(squares).amax(0).sqrt()",
        "test_clipping_leaves_short_rows_alone",
    ),
    Mutation(
        "KTO: prompts keep their own completions",
        "common/methods/kto.py",
        "following = [*items[1:], *items[:1]]",
        "following = items",
        "test_mismatched_pairs_shift_the_completions",
    ),
    Mutation(
        "Method base is measured with the shared adapter",
        "common/methods/evaluation.py",
        'if method == "base":\n        return []',
        'if method == "base":\n        return [reference.shared]',
        "test_base_ignores_the_shared_adapter_and_shared_has_no_reward",
    ),
    Mutation(
        "Contrast compares whole texts instead of per token",
        "common/methods/evaluation.py",
        "(logp - reference) / [completion_tokens(entry) for entry in items]",
        "logp - reference",
        "test_evaluation_is_per_token_where_lengths_differ",
    ),
    Mutation(
        "The reported NLL is per item instead of per token",
        "common/engine/scoring.py",
        "-float(np.sum(logp)) / sum(map(completion_tokens, items))",
        "-float(np.mean([p / completion_tokens(e) for p, e in zip(logp, items)]))",
        "test_evaluation_is_per_token_where_lengths_differ",
        "tests/common/methods/test_evaluation.py",
    ),
    Mutation(
        "A training that goes on begins with an empty optimiser",
        "common/engine/training.py",
        "return at.step, Adam(first, second, steps),",
        "return at.step, Adam(0 * first, 0 * second, 0 * steps),",
        "test_a_repeated_training_goes_on_and_ends_with_the_same_bits",
        "tests/client/owner/test_interrupted.py",
    ),
    Mutation(
        "What an interrupted training left outlives what is forgotten",
        "client/owner/forgetting.py",
        "            vault.forget(interrupted.SOURCE)\n",
        "",
        "test_forgetting_erases_what_a_training_left",
        "tests/client/owner/test_interrupted.py",
    ),
    Mutation(
        "An adapter that writes in loops is used if its likelihood is better",
        "client/owner/adapters.py",
        "        if self.fault:\n            return False\n",
        "",
        "test_an_adapter_that_writes_in_loops_is_kept_and_not_used",
        "tests/client/owner/test_owner.py",
    ),
    Mutation(
        "A fault that the adapter in use has as well counts against a new one",
        "common/methods/acceptance.py",
        "if found > max(*others, len(new) // 4):",
        "if found > len(new) // 4:",
        "test_every_fault_is_named_once_more_than_a_quarter_has_it",
    ),
    # --- data and metrics ------------------------------------------------------------
    Mutation(
        "ROUGE without the stemmer",
        "common/data/metrics.py",
        "use_stemmer=True",
        "use_stemmer=False",
        "test_rouge_stems_and_ignores_case_and_punctuation",
        "tests/common/data/test_metrics.py",
    ),
    Mutation(
        "An unreadable rating counts as the nearer end of the scale",
        "common/data/metrics.py",
        "abs(low - float(wanted)) > abs(high - float(wanted))",
        "abs(low - float(wanted)) < abs(high - float(wanted))",
        "test_unreadable_rating_is_the_farther_extreme",
        "tests/common/data/test_metrics.py",
    ),
    Mutation(
        "The oldest items are kept as history instead of the latest",
        "common/data/lamp/__init__.py",
        "tuple(history[-config.history :])",
        "tuple(history[: config.history])",
        "test_history_is_the_most_recent_by_date",
        "tests/common/data/test_lamp.py",
    ),
    Mutation(
        "Held-out items stay in the history",
        "common/data/lamp/__init__.py",
        "history = without(older, held, form)",
        "history = older",
        "test_history_equal_to_a_held_out_item_is_removed_and_counted",
        "tests/common/data/test_lamp.py",
    ),
    Mutation(
        "Personas: held-out prompts may be in somebody's history",
        "common/data/personas/__init__.py",
        "if purpose(world, event) == wanted:",
        "if wanted:",
        "test_held_out_prompts_are_nobodys_history",
        "tests/common/data/test_personas.py",
    ),
    # --- messages --------------------------------------------------------------------
    Mutation(
        "A lying npy header is believed",
        "common/protocol/packing.py",
        "inner != (shape, False, dtype),",
        "not inner,",
        # Others of this test would fail for their wording alone: the length catches them.
        "test_an_array_that_is_not_as_expected_is_refused[array7-contradicts]",
    ),
    Mutation(
        "A reply of an earlier step counts",
        "common/protocol/validation.py",
        "(message.run, message.step) != (run, step)",
        "message.run != run",
        "test_stale_messages_are_refused",
    ),
    Mutation(
        "Negative votes count",
        "common/protocol/validation.py",
        "good & (safe >= 0).all(axis=1)",
        "good",
        "test_votes_are_finite_not_negative_and_of_norm_one_at_most",
    ),
    # --- client and server -----------------------------------------------------------
    Mutation(
        "What a marked process started outlives the run",
        "server/simulate/processes.py",
        "{p for p, (parent, _) in seen.items() if parent in members} - members",
        "set()",
        "test_what_a_marked_process_started_is_ended_without_a_mark",
    ),
    Mutation(
        "A device hands over raw text for any kind of unlabeled set",
        "client/node/handlers.py",
        'node.config.unlabeled.kind != "others",',
        'node.config.unlabeled.kind == "",',
        "test_raw_text_leaves_only_for_the_kind_others",
    ),
    Mutation(
        "An adapter trained on another shared adapter is taken from the disk",
        "client/node/state.py",
        "[run, former(method), learning_rate, shared_hash, unlabeled_hash, rest]",
        "[run, former(method), learning_rate, unlabeled_hash, rest]",
        "test_each_rate_is_measured_with_its_own_adapter",
        "tests/client/node/test_handlers.py",
    ),
    Mutation(
        "The average divides by who answered, not by who was asked",
        "server/run/adapt.py",
        "state.shared = moved(state.shared, found.total, counted)",
        "state.shared = moved(state.shared, found.total, len(found.users))",
        "test_the_denominator_is_who_was_asked_not_who_answered",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "A row of NaN counts",
        "server/run/sums.py",
        "valid = finite_rows(rows)",
        "valid = np.ones(len(users), bool)",
        "test_a_row_of_nan_costs_one_user_one_round",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "The server trusts devices to clip",
        "server/run/sums.py",
        "scale = np.minimum(1.0, clip * MARGIN / np.maximum(norms, 1e-12))",
        "scale = np.ones(len(norms))",
        "test_a_huge_row_is_clipped_by_the_server",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "A resumed run repeats the last round",
        "server/run/adapt.py",
        "        run.state.rounds += 1\n        run.save()",
        "        run.save()\n        run.state.rounds += 1",
        "test_a_run_killed_between_checkpoints_ends_as_if_it_never_was",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "A run that is still alive is joined",
        "server/run/checkpoint.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "test_a_locked_run_is_refused_and_names_its_holder",
    ),
    Mutation(
        "A large backbone gets the rates of the smallest",
        "common/engine/rates.py",
        "for row in TABLE if parameters < row.below",
        "for row in TABLE",
        "test_a_larger_model_has_smaller_rates",
    ),
    Mutation(
        "A rate that was given is replaced by that of the size",
        "common/engine/rates.py",
        "if own == AUTO:",
        "if True:",
        "test_what_is_given_stays_and_no_file_is_read",
    ),
    Mutation(
        "A forecast follows the fastest node",
        "server/forecast/estimate.py",
        "slowest = max(each.values()",
        "slowest = min(each.values()",
        "test_an_exchange_takes_as_long_as_its_slowest_node",
    ),
    Mutation(
        "A forecast forgets the pass that a divided step takes first",
        "server/forecast/counts.py",
        "return tokens, more + (tokens if len(both[0]) > 1 else 0)",
        "return tokens, more",
        "test_a_step_in_two_passes_is_counted_forward_twice",
    ),
    Mutation(
        "A forecast forgets KTO's mismatched pairs",
        "server/forecast/counts.py",
        "return tokens, more + (tokens",
        "return tokens, 0 * more + (tokens",
        "test_what_is_counted_is_what_is_processed",
    ),
    # --- win rates -------------------------------------------------------------------
    Mutation(
        "Win rates: a place that is chosen twice wins",
        "server/pairwise/question.py",
        "return {(A, B): 1.0, (B, A): 0.0}",
        "return {(A, B): 1.0, (B, A): 0.0, (A, A): 1.0}",
        "test_a_verdict_counts_only_where_both_orders_agree",
    ),
    Mutation(
        "Win rates: both questions have the same order",
        "server/pairwise/question.py",
        "(pair.other, pair.one) if swapped",
        "(pair.one, pair.other) if swapped",
        "test_the_second_question_differs_in_the_order_alone",
    ),
    Mutation(
        "Win rates: an answer with two verdicts counts",
        "server/pairwise/question.py",
        "return found.pop() if len(found) == 1 else None",
        "return found.pop() if found else None",
        "test_an_answer_has_one_verdict_or_none",
    ),
    Mutation(
        "Win rates: users' texts go to a machine that nobody named",
        "server/pairwise/endpoint.py",
        "not here and host != allowed.lower()",
        "False",
        "test_another_machine_has_to_be_named",
        "tests/server/pairwise/test_judge.py",
    ),
    Mutation(
        "Win rates: a proxy of the environment has users' texts",
        "server/pairwise/endpoint.py",
        "trust_env=False",
        "trust_env=True",
        "test_a_proxy_of_the_environment_never_has_the_texts",
        "tests/server/pairwise/test_judge.py",
    ),
    Mutation(
        "Win rates: outputs of people's devices are judged",
        "server/pairwise/material.py",
        'config.on_devices or not found["run"].get("simulation")',
        "False",
        "test_only_a_simulations_outputs_are_read",
        "tests/server/pairwise/test_judge.py",
    ),
    Mutation(
        "Win rates: pairs without a verdict count as ties",
        "server/pairwise/tally.py",
        "if one.same or (one.first and one.second):",
        "if True:",
        "test_a_tally_is_that_of_the_definitions",
        "tests/server/pairwise/test_question.py",
    ),
    Mutation(
        "The worst learning rate is chosen",
        "server/run/personalise.py",
        "= min(\n        rates, key=",
        "= max(\n        rates, key=",
        "test_the_learning_rate_with_the_lowest_development_nll_is_taken",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "The interval of a difference is unpaired",
        "server/run/results.py",
        "a, b = methods[one], methods[other]",
        "a, b = methods[one], users[list(users)[-1 - len(rows)]][other]",
        "test_pairing_removes_what_users_have_in_common",
    ),
    Mutation(
        "Intervals cover 90 % instead of 95 %",
        "server/run/results.py",
        "(0.025, 0.975)",
        "(0.05, 0.95)",
        "test_an_interval_is_as_wide_as_theory_says",
    ),
    Mutation(
        "Claims are not corrected for how many a study makes",
        "server/findings/verdicts.py",
        "min(1.0, (len(alone) - rank) * alone[k])",
        "min(1.0, alone[k])",
        "test_the_more_claims_the_more_each_must_show",
    ),
    Mutation(
        "Two methods are equal where their mean difference alone is within the margin",
        "server/findings/page.py",
        "-margin < low and high < margin",
        '-margin < entry["mean"] < margin',
        "test_two_are_equal_only_where_the_whole_interval_lies_within_the_margin",
    ),
    Mutation(
        "A study reuses noise that was calibrated for another plan",
        "server/study/cells.py",
        "key = stage_key(config, SHARED) + noise",
        "key = stage_key(config, SHARED)",
        "test_what_noise_is_calibrated_from_is_not_shared",
    ),
    Mutation(
        "A real user counts once per seed",
        "server/findings/verdicts.py",
        'return cell["run"]["seed"] if cell',
        'return cell["run"]["seed"] if True or cell',
        "test_a_real_user_counts_once_whatever_the_number_of_seeds",
    ),
    Mutation(
        "In hindsight each user has the worst value, not the best",
        "server/findings/verdicts.py",
        "better = min if claim.metric",
        "better = max if claim.metric",
        "test_the_best_value_of_a_key_is_each_users_own",
    ),
    Mutation(
        "A recipe is chosen on the users it is reported on",
        "server/study/cells.py",
        'if measured == "development":',
        "if False:",
        "test_a_recipe_is_chosen_on_development_users",
    ),
    Mutation(
        "The control of random words keeps the texts",
        "server/study/controls.py",
        'return replace(item, target=" ".join(words[pick] for pick in picks))',
        "return item",
        "test_words_of_the_unlabeled_set_are_dealt_out_again",
    ),
    Mutation(
        "A preset overrides what was given",
        "common/config/parse.py",
        "together = {**preset, **given}",
        "together = {**given, **preset}",
        "test_any_key_that_is_given_wins_over_a_preset_its_default_too",
        "tests/common/config/test_parse.py",
    ),
    Mutation(
        "C-BPO: the unlabeled term has no weight of its own",
        "common/methods/c_bpo.py",
        "+ weight * pure.clamp(min=0)",
        "+ pure.clamp(min=0)",
        "test_weight_anchor_and_reward_per_token_do_what_they_say",
    ),
    Mutation(
        "DPO: the rejected text is preferred",
        "common/methods/cope.py",
        "margin = chosen.reward(beta) - rejected.reward(beta)",
        "margin = rejected.reward(beta) - chosen.reward(beta)",
        "test_dpo_closed_form",
    ),
    Mutation(
        "Decoding by contrast: implausible tokens may be chosen",
        "common/engine/scoring.py",
        "return scores.masked_fill(policy < least, -math.inf).repeat(2, 1)",
        "return scores.repeat(2, 1)",
        "test_only_plausible_tokens_are_contrasted",
    ),
    Mutation(
        "Examples in the prompt: the least similar stands next to the question",
        "common/methods/rag.py",
        "kept = text + kept",
        "kept = kept + text",
        "test_the_most_similar_stands_next_to_the_question",
    ),
    Mutation(
        "Ranking: a tie counts as a win",
        "common/methods/evaluation.py",
        "(above + tied / 2) / len(others)",
        "above / len(others)",
        "test_nobody_gains_by_a_tie",
    ),
    Mutation(
        "A value that could not be measured counts as zero",
        "server/run/results.py",
        "values = values[np.isfinite(values)]",
        "values = np.nan_to_num(values, posinf=0.0)",
        "test_values_that_are_not_there_are_not_zero",
    ),
    # --- privacy -----------------------------------------------------------------------
    Mutation(
        "The noise has a tenth of its charged size",
        "server/run/adapt.py",
        "std = release.event.z * clip",
        "std = release.event.z * clip / 10",
        "test_the_honest_aggregation_is_within_its_claim",
        "tests/server/audit/test_audit.py",
    ),
    Mutation(
        "A row is cut to the nearest, not towards zero, and so may exceed the clip",
        "server/run/sums.py",
        "np.trunc(clipped / unit)",
        "np.rint(clipped / unit)",
        "test_cut_rows_do_not_exceed_the_clip",
        "tests/server/run/test_sensitivity.py",
    ),
    Mutation(
        "Stale alpha: what is kept is found whatever the history was",
        "common/unlabeled/alpha.py",
        "content_hash(own, aux, rest)",
        "content_hash(aux, rest)",
        "test_alpha_is_kept_for_its_user_its_set_and_its_seed",
    ),
    Mutation(
        "Stale alpha: what is kept is found whatever the weights were",
        "common/unlabeled/alpha.py",
        "rest = (rule, weights.tolist(), repr(generator",
        "rest = (rule, repr(generator",
        "test_alpha_is_kept_for_its_user_its_set_and_its_seed",
    ),
    Mutation(
        "Rounding makes a sum depend on groups and order, and its sensitivity unsure",
        "server/run/sums.py",
        "(np.trunc(clipped / unit) * unit).sum(0)",
        "clipped.sum(0)",
        "test_the_bits_of_the_sum_do_not_depend_on_groups_and_order",
        "tests/server/run/test_sensitivity.py",
    ),
    Mutation(
        "The denominator is who came, not who was expected",
        "server/run/adapt.py",
        "state.shared, found.total, release, clip, config, counted",
        "state.shared, found.total, release, clip, config, len(users)",
        "test_a_sampled_round_asks_whom_the_coins_name_and_divides_by_the_expectation",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "Sums of integers: the noise of who is missing is not added",
        "server/run/adapt.py",
        "name: total + missing_noise(total.shape, users, known, release.random)",
        "name: total",
        "test_what_is_published_has_the_noise_that_is_charged_whoever_came",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: each user adds all of the noise",
        "common/secure/rows.py",
        "share = share_variance(z, grid.sensitivity, most)",
        "share = share_variance(z, grid.sensitivity, 1)",
        "test_what_is_published_has_the_noise_that_is_charged_whoever_came",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: users add the same noise",
        "common/secure/rows.py",
        'return source(True, config.seed, release, "share", user)',
        'return source(True, config.seed, release, "share")',
        "test_users_draw_noise_of_their_own_and_anew_in_each_release",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: noise that the server knows hides users from it",
        "server/run/budget.py",
        "corrupt = colluding(config.secagg.colluding, rows.most)",
        "corrupt = 0",
        "test_the_epsilons_of_the_design_on_a_whole_ledger",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: the server is believed to see its own noise only",
        "server/privacy/accountant.py",
        "if event.server_z is None:",
        "if event.z:",
        "test_the_epsilons_of_the_design_on_a_whole_ledger",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: one that was cut short is not paid for again",
        "server/run/budget.py",
        "cut_short = unfinished and (not summed(config) or begun(paid[-1].id))",
        "cut_short = unfinished",
        "test_a_sum_that_was_cut_short_is_paid_for_again",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: any number of rows is enough",
        "common/secure/rows.py",
        "users < known.required,",
        "False,",
        "test_too_few_rows_and_a_sum_that_cannot_be_are_left_out",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Sums of integers: what devices send is added up without masks",
        "common/config/checks.py",
        'mode == "sum" and devices,',
        "False,",
        "test_a_configuration_that_cannot_be_summed_is_refused",
        "tests/server/run/test_integers.py",
    ),
    Mutation(
        "Masked sums: a device answers a request for a bare row",
        "client/node/agreement.py",
        "masked != summed and not node.simulated,",
        "False,",
        "test_a_request_without_masks_gets_no_row_of_a_masked_run",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: hidden draws excuse any noise",
        "common/secure/expected.py",
        "            and sampled_delta(z, rate, privacy.epsilon) <= most\n"
        "            and summed_delta(z, rate, privacy.epsilon, count) <= most\n",
        "",
        "test_noise_that_costs_more_than_epsilon_is_refused_though_users_are_drawn",
    ),
    Mutation(
        "Masked sums: two members have one key",
        "server/run/masked.py",
        "elif user not in known and not run.keys.isdisjoint(members.keys_of(entry)):",
        "elif False:",
        "test_a_key_of_another_member_is_not_taken_into_the_directory",
    ),
    Mutation(
        "Masked sums: a row goes into a sum of another kind, with its noise",
        "client/node/secure.py",
        "(summing.stage, summing.clip) != (stage, clip)",
        "summing.clip != clip",
        "test_a_sum_that_is_not_what_was_agreed_to_gets_no_row",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: a device signs a second list of members",
        "client/node/secure.py",
        "earlier=None if earlier is None else bytes.fromhex(earlier),",
        "earlier=None,",
        "test_a_second_list_of_members_is_not_signed",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: a report that was never sent is counted",
        "client/node/secure.py",
        "reported=plan.release in past.reported,",
        "reported=True,",
        "test_a_member_that_never_reported_is_not_counted",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: a device agrees to a second plan of a release",
        "client/node/secure.py",
        "before not in (None, plan.hash.hex()),",
        "False,",
        "test_a_second_plan_of_a_release_is_refused",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: keys that the server made up are taken for a member's",
        "client/node/secure.py",
        "not members.signed(entries[number], request.run, server),",
        "False,",
        "test_keys_that_a_member_has_not_signed_are_noticed",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: a device adds less noise than the run declares",
        "common/secure/expected.py",
        "enough = z > 0 and z >= declared * (1 - TOLERANCE)",
        "enough = z > 0",
        "test_a_sum_that_is_not_what_was_agreed_to_gets_no_row",
        "tests/test_masked_devices.py",
    ),
    Mutation(
        "Masked sums: the server stops before the shares fit together",
        "server/run/masked.py",
        "enough=lambda: not left,",
        "enough=lambda: True,",
        "test_wrong_shares_of_a_quick_member_cost_nothing",
        "tests/server/run/test_masked.py",
    ),
    Mutation(
        "Masked sums: the plan is not on disk before anybody is asked",
        "server/run/masked.py",
        'write_atomically(place / "plan.json", json.dumps(stored).encode())\n'
        '    stored = json.loads((place / "plan.json").read_text())',
        "assert stored",
        "test_a_server_killed_in_any_exchange_goes_on_with_the_same_sum",
        "tests/server/run/test_masked.py",
    ),
    Mutation(
        "Everybody takes part whatever the coins say",
        "common/privacy/noise.py",
        "if tossed[i] <= chance",
        "if tossed[i] <= 1",
        "test_coins_are_independent_and_fair",
        "tests/common/privacy/test_noise.py",
    ),
    Mutation(
        "Noise comes from the seed though it was not asked for",
        "common/privacy/noise.py",
        "if not seeded:",
        "if seeded:",
        "test_noise_from_the_operating_system_never_repeats",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "The four draws of the noise are one draw",
        "common/privacy/noise.py",
        "draws.reshape(4, count).sum(0)",
        "4 * draws[:count]",
        "test_noise_is_gaussian_of_the_given_size",
        "tests/common/privacy/test_noise.py",
    ),
    Mutation(
        "A charge is on disk only after the release",
        "server/privacy/ledger.py",
        "self.save(charges=[*self.charges, charge])\n",
        "pass\n",
        "test_killed_between_charge_and_release_the_ledger_is_on_the_safe_side",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "The budget is not checked",
        "server/privacy/ledger.py",
        "after > self.epsilon * (1 + TOLERANCE),",
        "after > 100 * self.epsilon,",
        "test_a_round_beyond_the_budget_is_refused_and_the_run_ends_with_what_it_has",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "A device does not count what it takes part in",
        "client/node/state.py",
        "most and len(took) >= most,",
        "False,",
        "test_a_vote_beyond_what_was_agreed_to_is_not_cast",
        "tests/client/node/test_handlers.py",
    ),
    Mutation(
        "A changed item is taken under an old signature",
        "client/node/agreement.py",
        "        content,\n        before.seen,",
        "        parse_manifest(request.manifest).content,\n        before.seen,",
        "test_a_changed_item_is_refused_by_every_device",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "Another signing key is taken without a word",
        "client/node/state.py",
        "before.seen.key != key,",
        "False,",
        "test_another_key_is_refused_after_the_first_contact",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "Who did not vote takes a vote out of the sum too",
        "client/node/agreement.py",
        "return manifest.vote in took and user.id in request.voted",
        "return True",
        "test_only_those_who_voted_take_their_vote_out",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "Metrics per user leave though they should be noisy",
        "client/node/handlers.py",
        "return EvaluateReply(**head, metrics={}, sums={",
        "return EvaluateReply(**head, metrics=done, sums={",
        "test_noisy_metrics_leave_no_value_of_any_user",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "Buckets with too few users count as supported",
        "server/run/pool.py",
        "np.flatnonzero(support >= least)",
        "np.flatnonzero(support > 0)",
        "test_too_little_support_hands_out_nothing",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "The server believes that offered text was scrubbed",
        "server/run/remote.py",
        "return all(scrub(text) == text for",
        "return all(True for",
        "test_text_that_was_not_scrubbed_is_not_handed_out",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "A vote counts as long as it came",
        "server/run/remote.py",
        "add = partial(sum_of_unit, integers=integers)",
        "add = lambda rows, _users: rows.sum(0)",
        "test_a_vote_that_is_a_little_too_long_is_clipped_in_the_sum",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "A row of metrics counts as long as it came",
        "server/run/remote.py",
        "partial(sum_of_unit, integers=integers),",
        "lambda rows, _users: rows.sum(0),",
        "test_a_row_of_metrics_that_is_a_little_too_long_is_clipped",
        "tests/server/run/test_privacy.py",
    ),
    Mutation(
        "A row fills its clip to the last bit that float64 sees",
        "server/run/sums.py",
        "MARGIN = 1 - 2.0**-30",
        "MARGIN = 1.0",
        "test_a_row_that_float64_takes_for_the_clips_length_is_not_longer",
        "tests/server/run/test_sensitivity.py",
    ),
    Mutation(
        "A reply may have any number of objects",
        "server/run/inbox.py",
        "len(reply.objects) > most.objects,",
        "False,",
        "test_no_object_is_pulled_of_a_reply_with_too_many",
    ),
    Mutation(
        "A reply is read whole, however long it is",
        "server/run/inbox.py",
        "_bound(pulled[kind], getattr(most, kind))",
        "pass",
        "test_a_hostile_reply_is_its_senders_failure_and_is_deleted",
    ),
    Mutation(
        "An array may name its piece as often as it likes",
        "server/run/inbox.py",
        "_bound(unfolded, most.tensors)",
        "pass",
        "test_a_hostile_reply_is_its_senders_failure_and_is_deleted",
    ),
    Mutation(
        "What is refused stays at the SuperLink",
        "server/run/inbox.py",
        "in (self.announced.pop(name).head, name):",
        "in (self.announced.pop(name).head, name)[1:]:",
        "test_a_hostile_reply_is_its_senders_failure_and_is_deleted",
    ),
    Mutation(
        "A reply says itself which task it answers",
        "server/run/inbox.py",
        "yield name, found",
        "yield found.metadata.reply_to_message_id, found",
        "test_a_reply_is_counted_for_the_task_it_was_checked_for",
    ),
    Mutation(
        "Every step waits for a device that let a deadline pass",
        "server/run/exchange.py",
        "if prompt & left or not prompt:",
        "if True:",
        "test_nobody_is_waited_for_alone_in_every_step",
        "tests/test_malicious.py",
    ),
    Mutation(
        "A number that is not finite gets into a log",
        "common/protocol/packing.py",
        "if hint is float and not abs(value) <= MAX_FLOAT:",
        "if False:",
        "test_a_number_that_is_not_finite_or_too_large_is_refused_everywhere",
    ),
    # --- devices ---------------------------------------------------------------------
    Mutation(
        "An outflow that the owner wants noisy leaves without noise",
        "client/owner/consent.py",
        'given == "no" or (given in HOW and why),',
        'given == "no",',
        "test_without_the_owners_consent_nothing_of_the_kind_leaves",
        "tests/test_devices.py",
    ),
    Mutation(
        "Metrics in clear count as noisy where the adapter's are",
        "common/privacy/protected.py",
        'clear = outflow == "metrics" and privacy.metrics != "noisy"',
        "clear = False",
        "test_metrics_are_noisy_only_where_they_are_said_to_be",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device answers while its owner has paused it",
        "client/node/device.py",
        'consent.paused(self._vault), "the owner',
        'False, "the owner',
        "test_a_device_says_why_it_does_not_take_part",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device carries out a task for somebody else",
        "client/node/device.py",
        "if sealed.users not in ((), (self.user,)):",
        "if False:",
        "test_a_task_for_somebody_else_is_refused",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device does a task again that was played back",
        "client/node/state.py",
        'counter <= int(store.read("counter") or b"0"),',
        "False,",
        "test_what_was_recorded_of_a_run_is_never_done_again",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device does a task that was sealed for another",
        "client/node/device.py",
        "sealed.seal.node != str(self.number),",
        "False,",
        "test_what_was_recorded_of_a_run_is_never_done_again",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device takes part in a run that its server did not sign",
        "client/node/device.py",
        "verify(sealed, joined(self._vault).signing_key)",
        "pass",
        "test_a_run_signed_by_another_than_the_joined_server_is_refused",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device works for a run without a hello",
        "client/node/handlers.py",
        "            state.check_agreed(",
        "            _ = (",
        "test_no_valid_hello_no_work_and_the_cap_holds",
        "tests/test_devices.py",
    ),
    Mutation(
        "A run changes its configuration after the hello",
        "client/node/state.py",
        "before.seen is None or before.config != config,",
        "before.seen is None,",
        "test_no_valid_hello_no_work_and_the_cap_holds",
        "tests/test_devices.py",
    ),
    Mutation(
        "A hello erases what other runs left",
        "client/node/device.py",
        "recent = sorted(runs, key=lambda run: runs[run])[-MOST_RUNS:]",
        "recent = [task.run]",
        "test_two_runs_at_once_leave_each_other_alone",
        "tests/test_devices.py",
    ),
    Mutation(
        "A part of a task is taken without its hash",
        "common/protocol/signed.py",
        "digest(data) != announced,",
        "False,",
        "test_a_part_that_was_exchanged_on_the_way_is_refused",
        "tests/client/node/test_handlers.py",
    ),
    Mutation(
        "A part that is kept is taken without its hash",
        "common/protocol/signed.py",
        "if n not in parts or digest(parts[n]) != wanted[n]]",
        "if n not in parts]",
        "test_parts_are_kept_and_asked_for_where_they_are_not",
        "tests/client/node/test_handlers.py",
    ),
    Mutation(
        "A simulated node takes tasks that nobody signed",
        "client/node/app.py",
        "verify(sealed, key)",
        "pass",
        "test_a_task_signed_by_another_key_is_refused",
        "tests/client/node/test_handlers.py",
    ),
    Mutation(
        "A node is sent every part with every task",
        "server/run/exchange.py",
        "known = {} if self.tries[index] else run.holds.get(node, {})",
        "known: dict[str, str] = {}",
        "test_parts_travel_once",
        "tests/server/run/test_run.py",
    ),
    Mutation(
        "A resumed run counts its tasks from the beginning",
        "server/run/app.py",
        "    state.life += 1\n",
        "",
        "test_a_killed_run_goes_on_with_the_devices_it_had",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device begins its counts again under another number",
        "client/node/state.py",
        "elif int(known) != number:",
        "elif False:",
        "test_a_device_has_one_number_in_a_run",
        "tests/test_devices.py",
    ),
    Mutation(
        "Parts are stored under ids that can be guessed",
        "common/protocol/signed.py",
        "salt + part.data",
        "bytes(16) + part.data",
        "test_what_flower_stores_of_a_part_cannot_be_guessed",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device uses paths that the server names",
        "client/node/device.py",
        '"backbone": chosen["backbone"],',
        "",
        "test_a_run_on_devices_leaves_each_an_adapter_of_its_own",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device's worker keeps the history's texts until its next task",
        "client/node/device.py",
        "            forget()  # private text",
        "            pass  # private text",
        "test_no_text_stays_in_a_worker_between_tasks",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device tells alpha and its training log",
        "client/node/host.py",
        "return node.simulated and not is_noisy(node.config)",
        "return not is_noisy(node.config)",
        "test_a_run_on_devices_leaves_each_an_adapter_of_its_own",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device quotes an error that nobody foresaw",
        "client/node/host.py",
        """return f"{type(error).__name__}: the device's own log says more.\"""",
        'return f"{type(error).__name__}: {error}"',
        "test_an_error_that_could_quote_the_text_is_not_told",
        "tests/test_devices.py",
    ),
    Mutation(
        "What a run trained is adopted twice",
        "client/owner/judging.py",
        "if version.origin == origin:",
        "if False:",
        "test_a_killed_run_goes_on_with_the_devices_it_had",
        "tests/test_devices.py",
    ),
    Mutation(
        "Forgetting leaves what a run trained",
        "client/owner/forgetting.py",
        "vault.forget_runs()",
        "pass",
        "test_forgetting_reaches_what_a_run_trained",
        "tests/test_devices.py",
    ),
    Mutation(
        "A record can be moved to the place of another",
        "client/owner/records.py",
        "return json.dumps([schema, *parts]).encode()",
        'return b""',
        "test_damage_is_named_and_never_read_as_data",
        "tests/client/owner/test_vault.py",
    ),
    Mutation(
        "Chunks of two versions make a record",
        "client/owner/vault.py",
        "            row = (kind, key, place, version, chunk, len(parts))\n"
        "            ciphertext, now = sealed(data_key, part, bound(*row)), time()",
        "            row = (kind, key, place, bytes(16), chunk, len(parts))\n"
        "            ciphertext, now = sealed(data_key, part, bound(*row)), time()",
        "test_chunks_of_two_versions_make_no_record",
    ),
    Mutation(
        "A record that was taken out of the vault is not missed",
        "client/owner/store.py",
        "wrong = wrong or difference(root.sums, self._tally())",
        "pass",
        "test_what_was_taken_out_added_or_put_back_is_refused",
        "tests/client/owner/test_vault.py",
    ),
    Mutation(
        "An index may leave out records",
        "client/owner/store.py",
        "wrong or self._index_is_wrong(),",
        "wrong,",
        "test_what_was_taken_out_added_or_put_back_is_refused",
        "tests/client/owner/test_vault.py",
    ),
    Mutation(
        "An open vault believes an older copy of itself",
        "client/owner/store.py",
        "refuse_if(root.writes < self._root.writes,",
        "refuse_if(False,",
        "test_an_older_copy_of_the_whole_is_refused_by_who_has_seen_the_newer",
        "tests/client/owner/test_vault.py",
    ),
    Mutation(
        "An erasure that did not complete is reported as done",
        "client/owner/store.py",
        "            if monotonic() >= ends:\n                raise ErasureError",
        "            if monotonic() >= ends:\n"
        "                return\n"
        "            if False:\n"
        "                raise ErasureError",
        "test_an_erasure_that_did_not_complete_is_said_and_made_up_for",
        "tests/client/owner/test_vault.py",
    ),
    Mutation(
        "A passphrase is taken as it was typed",
        "client/owner/keys.py",
        'return derived(unicodedata.normalize("NFC", self.text), salt)',
        "return derived(self.text, salt)",
        "test_one_passphrase_however_an_editor_saved_it",
        "tests/client/owner/test_unlock.py",
    ),
    Mutation(
        "An adapter is kept that learnt what was forgotten meanwhile",
        "client/owner/judging.py",
        "            check_learnt(vault, learnt)\n",
        "",
        "test_what_is_forgotten_while_it_is_learnt_stays_forgotten",
        "tests/client/owner/test_owner.py",
    ),
    Mutation(
        "A run's adapter is kept that learnt what was forgotten meanwhile",
        "client/node/device.py",
        "learning.check_learnt(self.vault, self.learnt)",
        "pass",
        "test_a_run_that_trains_while_text_is_forgotten_leaves_nothing",
        "tests/client/owner/test_owner.py",
    ),
    Mutation(
        "An answer leaves that was made of what was forgotten meanwhile",
        "client/node/device.py",
        "learning.check_learnt(self._vault, self._read)",
        "pass",
        "test_a_forgotten_text_is_not_measured_either",
        "tests/test_devices.py",
    ),
    Mutation(
        "A device takes any name of a method",
        "client/node/handlers.py",
        "request.method not in node.config.method_list,",
        "False,",
        "test_a_method_that_is_not_of_the_run_is_refused",
    ),
    Mutation(
        "A run trains on a device whose owner does not want that",
        "client/node/handlers.py",
        '    _check_method(request, node)\n    node.permit("training", node.config)',
        "    _check_method(request, node)",
        "test_without_consent_for_training_nothing_is_trained",
        "tests/test_devices.py",
    ),
    Mutation(
        "A worse adapter takes the place of the one in use",
        "client/owner/adapters.py",
        "self.nll_against <= self.nll_in_use + self.allowed",
        "True",
        "test_a_ruined_shared_adapter_does_not_take_the_place_of_a_better_one",
        "tests/client/owner/test_owner.py",
    ),
    Mutation(
        "A subset of the unlabeled set ignores the weights",
        "common/unlabeled/draws.py",
        "drawn = generator.choice(len(weights), count, p=weights / weights.sum())",
        "drawn = generator.choice(len(weights), count)",
        "test_a_large_set_is_sampled_in_proportion_to_its_weights",
    ),
    Mutation(
        "One device answers for another",
        "server/run/hello.py",
        "if reply.users != (name,):",
        "if False:",
        "test_a_device_cannot_answer_for_another",
        "tests/test_devices.py",
    ),
    Mutation(
        "A run takes in more devices than it was calibrated for",
        "server/run/hello.py",
        "if name not in devices and len(devices) >= run.config.users:",
        "if False:",
        "test_a_run_has_as_many_devices_as_it_was_calibrated_for",
        "tests/test_devices.py",
    ),
    Mutation(
        "The proxy lets everything through",
        "server/deploy/proxy.py",
        "call = authorization.CALLS.get(request.target)",
        "call = next(iter(authorization.CALLS.values()))",
        "test_nothing_else_reaches_the_superlink",
    ),
    Mutation(
        "The proxy tells a device that nothing waits when something does",
        "server/deploy/database.py",
        "signed = node - 2**64 if node >= 2**63 else node",
        "signed = node % 2**63",
        "test_what_waits_is_found_by_flowers_own_rule[9223372036854775808]",
        "tests/server/deploy/test_proxy.py",
    ),
    Mutation(
        "Work of other devices reaches the SuperLink's database as one's own",
        "server/deploy/database.py",
        "WHERE dst_node_id = ? AND delivered_at",
        "WHERE (dst_node_id = ? OR 1) AND delivered_at",
        "test_a_device_for_which_nothing_waits_is_answered_at_the_entrance[None]",
        "tests/server/deploy/test_proxy.py",
    ),
    Mutation(
        "A device without work asks every second for ever",
        "client/node/worker.py",
        "return min(max(idle / SLOWER, POLL), LONGEST_POLL)",
        "return POLL",
        "test_a_device_without_work_asks_less_often_until_there_is_some",
        "tests/client/node/test_supervisor.py",
    ),
    Mutation(
        "What is kept of a talk is not cut where another branches off",
        "common/engine/streaming.py",
        "            cache.crop(-more)",
        "            pass",
        "test_a_conversation_goes_on_from_what_is_kept[llama]",
    ),
    Mutation(
        "A talk goes on from what a broken step left",
        "common/engine/streaming.py",
        "            fed = None\n",
        "",
        "test_a_broken_step_leaves_nothing_kept",
    ),
    Mutation(
        "A talk goes on from what the other policy has computed",
        "client/owner/writing.py",
        "self.kept.get(asked.policy) if len(asked.texts) > 1 else None",
        "next(iter(self.kept.values()), None) if len(asked.texts) > 1 else None",
        "test_each_turn_equals_a_fresh_run_of_the_same_history",
        "tests/client/local/test_keeping.py",
    ),
    Mutation(
        "Processes of study --jobs make the same shared adapter",
        "server/study/cache.py",
        "(key in own, key not in others, needed[key]) for key in keys[cell]",
        "(0, 0, 0) for key in keys[cell]",
        "test_two_processes_write_the_files_of_one",
        "tests/server/study/test_jobs.py",
    ),
    Mutation(
        "A request reads the texts of everybody on its node",
        "client/node/handlers.py",
        "return tuple(fitting(backbone, user)[0] for user in node.users)",
        "known = {u.id: fitting(backbone, u)[0] for u in node.residents}\n"
        "    return tuple(known[user.id] for user in node.users)",
        "test_a_request_makes_and_reads_its_own_users_only",
    ),
    Mutation(
        "A node is sent all its requests at once",
        "server/run/exchange.py",
        "            if self.under_way[node] == AHEAD:\n",
        "            if False:\n",
        "test_a_node_has_few_requests_at_a_time",
        "tests/server/run/test_waiting.py",
    ),
    Mutation(
        "Users who are made late are other users",
        "common/data/types.py",
        "return self._make(self._places[index])",
        "return self._make(self._places[index - 1])",
        "test_they_behave_like_a_tuple_and_are_made_late",
    ),
    Mutation(
        "A process of a cluster keeps its place when no cell is left",
        "server/study/jobs.py",
        "return workers[process].shutdown(wait=False)",
        "return",
        "test_a_process_leaves_its_place_when_no_cell_is_left",
    ),
    Mutation(
        "A machine with other versions computes cells",
        "server/study/actors.py",
        "            (found := versions()) != expected,\n",
        "            (found := versions()) is None,\n",
        "test_cells_are_computed_by_the_same_versions_only",
    ),
    Mutation(
        "The proxy passes on whatever headers it gets",
        "server/deploy/proxy.py",
        "kept = {name: headers[name] for name in FORWARDED if name in headers}",
        "kept = dict(headers)",
        "test_a_fleet_call_passes_with_its_signature_and_nothing_else",
    ),
    Mutation(
        "The proxy does not count an answer while it comes",
        "server/deploy/proxy.py",
        "                _hold(proxy, connection, len(part))\n",
        "",
        "test_an_answer_is_counted_while_it_comes",
    ),
    Mutation(
        "A revoked device is let in",
        "server/deploy/authorization.py",
        "refuse_if(revoked, 401, REVOKED)",
        "refuse_if(False, 401, REVOKED)",
        "test_a_revoked_device_is_refused_at_once",
        "tests/server/deploy/test_proxy.py",
    ),
    Mutation(
        "A device replies in another's name",
        "server/deploy/authorization.py",
        "nodes |= _sources(request, trees)",
        "_sources(request, trees)",
        "test_a_reply_in_another_devices_name_is_refused",
        "tests/server/deploy/test_proxy.py",
    ),
    Mutation(
        "An object is given to every device that knows its hash",
        "server/deploy/authorization.py",
        "isinstance(request, PullObjectRequest)",
        "False",
        "test_objects_and_messages_are_those_of_the_device_they_were_sent_to",
        "tests/server/deploy/test_proxy.py",
    ),
    Mutation(
        "A process still has in memory what `forget` has erased",
        "client/owner/forgetting.py",
        "        resident.end(vault.path)  # it has what is erased in its memory\n",
        "",
        "test_nothing_of_what_is_forgotten_is_in_a_process_when_forget_returns",
        "tests/client/owner/test_resident.py",
    ),
    Mutation(
        "The model that is kept loaded is asked for on a socket of another account",
        "client/owner/resident.py",
        'if struct.unpack("3i", peer)[1] != os.getuid():',
        "if False:",
        "test_another_account_is_not_asked",
    ),
    Mutation(
        "The model stays loaded when another adapter is in use",
        "client/owner/writing.py",
        "return file, settings(vault), used",
        "return file, settings(vault)",
        "test_it_ends_when_what_it_holds_has_changed",
        "tests/client/owner/test_resident.py",
    ),
    Mutation(
        "Samples of the model are told from the user's texts by their length",
        "common/unlabeled/samples.py",
        "budget = min(longest, output_budget(reference.backbone, task))",
        "budget = output_budget(reference.backbone, task)",
        "test_samples_have_at_most_as_many_tokens_as_the_longest_own_text",
    ),
    Mutation(
        "The prompt's words may not be repeated in the answer",
        "common/engine/scoring.py",
        "RepetitionPenaltyLogitsProcessor(repetition, longest)",
        "RepetitionPenaltyLogitsProcessor(repetition)",
        "test_what_stands_in_the_output_is_written_again_less_often",
    ),
    Mutation(
        "Policies side by side: a smaller rank is filled up with another's rows",
        "common/engine/adapters.py",
        "b[name] = torch.cat([F.pad(p.b[name], (0, n)) for p, n in pairs])",
        "b[name] = torch.cat([F.pad(p.b[name], (n, 0)) for p, n in pairs])",
        "test_policies_of_different_ranks_and_projections_run_side_by_side",
    ),
    Mutation(
        "The server tells devices its paths",
        "server/run/live.py",
        'own = ("unlabeled.file", "backbone") if self.config.on_devices else ()',
        "own = ()",
        "test_paths_of_the_server_stay_there",
        "tests/test_devices.py",
    ),
    Mutation(
        "Everybody on the server machine may submit runs",
        "server/deploy/superlink.py",
        "if not hmac.compare_digest(given, self._token):",
        "if False:",
        "test_only_the_token_is_let_in",
    ),
    Mutation(
        "A sender's words reach the operator's terminal as they are",
        "common/text.py",
        'return "".join(c if c.isprintable() else MARK for c in text)',
        "return text",
        "test_a_part_of_a_line_is_printable_and_short",
    ),
    Mutation(
        "A log writes what a device said as it is",
        "common/text.py",
        "            place.addFilter(Printable())",
        "            pass",
        "test_a_guarded_log_writes_nothing_that_a_terminal_obeys",
    ),
    Mutation(
        "A name is an instruction to the operator's console",
        "server/run/results.py",
        "return Console(width=width, markup=False, emoji=False)",
        "return Console(width=width)",
        "test_a_console_takes_nothing_for_an_instruction",
        "tests/test_terminal.py",
    ),
    Mutation(
        "Private text is taken from the command line without a word",
        "client/commands/answer.py",
        "    if given not in (None, ASK):\n        if given:",
        "    if given not in (None, ASK):\n        if False:",
        "test_a_prompt_on_the_command_line_is_taken_with_a_warning",
        "tests/client/test_cli.py",
    ),
    Mutation(
        "Noise from a seed in the task counts as noise",
        "common/privacy/protected.py",
        "            privacy.seeded,",
        "            False,",
        "test_noise_that_is_none_is_named",
        "tests/common/privacy/test_protected.py",
    ),
    Mutation(
        "An epsilon without meaning counts as protection",
        "common/privacy/protected.py",
        "epsilon > VAIN,",
        "epsilon > math.inf,",
        "test_noise_that_is_none_is_named",
        "tests/common/privacy/test_protected.py",
    ),
    Mutation(
        "A sum of one user counts as protected",
        "common/privacy/protected.py",
        "(users < FEWEST, ",
        "(False, ",
        "test_each_outflow_has_an_answer_of_its_own",
        "tests/common/privacy/test_protected.py",
    ),
    Mutation(
        "Next to no noise counts as noise",
        "common/privacy/protected.py",
        "return faint and one > config.privacy.epsilon * (1 + TOLERANCE)",
        "return False",
        "test_each_outflow_has_an_answer_of_its_own",
        "tests/common/privacy/test_protected.py",
    ),
    Mutation(
        "The owner's ceilings are for each run alone",
        "client/owner/consent.py",
        "within(chosen, charges.values())):",
        "within(chosen, [new])):",
        "test_the_ceilings_are_for_all_runs_together",
    ),
    Mutation(
        "A device charges a run that it refuses",
        "client/owner/consent.py",
        "    charges[run] = new\n",
        "    charges[run] = new\n"
        "    vault.put('state', [Record('spent', json.dumps({one: asdict(e) for one, e in "
        "charges.items()}).encode())], SOURCE)\n",
        "test_a_first_ordinary_run_passes_and_is_charged_once",
    ),
    Mutation(
        "A device answers more releases than a run declared",
        "client/node/state.py",
        "most = min([n for n in (before.most, planned) if n], default=0)",
        "most = before.most",
        "test_a_server_that_asks_for_more_releases_than_declared_gets_none",
        "tests/test_devices.py",
    ),
    Mutation(
        "`sent` names an epsilon for what left without noise",
        "client/owner/consent.py",
        'return (None, why) if why else (epsilon_of(config), "")',
        'return epsilon_of(config), ""',
        "test_sent_says_what_protects_this_message",
    ),
    Mutation(
        "A device loads the backbone while it is paused",
        "client/node/device.py",
        'consent.paused(self._vault), "the owner',
        'False, "the owner',
        "test_a_paused_device_loads_no_backbone",
        "tests/test_devices.py",
    ),
    Mutation(
        "A number of a task may be anything",
        "common/protocol/packing.py",
        "said = beyond(values)",
        'said = ""',
        "test_a_number_out_of_its_range_is_refused",
    ),
    Mutation(
        "Delta may be the chance that a user is exposed",
        "common/config/checks.py",
        "private and config.privacy.delta > most,",
        "False,",
        "test_delta_is_at_most_a_tenth_of_a_user",
        "tests/common/config/test_parse.py",
    ),
    Mutation(
        "Numbers of a configuration add up to endless work",
        "common/config/checks.py",
        "passes > MOST_PASSES,",
        "False,",
        "test_no_numbers_add_up_to_endless_work",
        "tests/common/config/test_parse.py",
    ),
    Mutation(
        "Ray in a simulation asks for no token",
        "server/simulate/launch.py",
        '"RAY_AUTH_MODE": "token",',
        '"RAY_AUTH_MODE": "disabled",',
        "test_every_run_has_a_token_of_its_own",
        "tests/server/simulate/test_environment.py",
    ),
    Mutation(
        "A run inherits whatever its caller was told",
        "server/simulate/environment.py",
        'if name in INHERITED or name.startswith("LC_")',
        "if name",
        "test_only_what_is_listed_is_inherited",
    ),
    Mutation(
        "A file that was open to others stays open",
        "common/files.py",
        "os.fchmod(handle, 0o600)",
        "os.fstat(handle)",
        "test_a_file_that_was_open_is_closed",
    ),
    Mutation(
        "A warning names who failed, with privacy on",
        "server/run/exchange.py",
        "by_sentence.setdefault(run.nameless(text), []).append(user)",
        "by_sentence.setdefault(text, []).append(user)",
        "test_one_sentence_for_all_that_failed_alike",
        "tests/server/run/test_names.py",
    ),
    Mutation(
        "The log of a run names who failed, with privacy on",
        "server/run/app.py",
        "record.msg, record.args = self.nameless(text), ()",
        "record.msg, record.args = text, ()",
        "test_a_defect_of_ours_names_nobody",
        "tests/server/run/test_names.py",
    ),
    Mutation(
        "The benchmark of owners imports texts that it calls unseen",
        "benchmarks/owners.py",
        "return rows[:-UNSEEN], rows[-UNSEEN:]",
        "return rows, rows[-UNSEEN:]",
        "test_the_newest_texts_are_kept_out_of_the_import",
        "tests/test_owners.py",
    ),
    Mutation(
        "The benchmark of owners calls only whole repetitions a loop",
        "benchmarks/owners.py",
        "len(set(pieces)) < len(pieces) / 2",
        "len(set(pieces)) < 2",
        "test_a_loop_is_told_from_a_text",
        "tests/test_owners.py",
    ),
    Mutation(
        "The page of owners counts the adapters that are not used",
        "benchmarks/owners.py",
        'used = [result for result in results if not result["reason"]]',
        "used = list(results)",
        "test_the_page_says_which_aims_are_missed",
        "tests/test_owners.py",
    ),
    Mutation(
        "Bytes that are withheld are said to be zero",
        "server/run/app.py",
        '{"bytes_up": None, "bytes_down": None}',
        '{"bytes_up": 0, "bytes_down": 0}',
        "test_withheld_is_null_and_no_number",
        "tests/server/run/test_names.py",
    ),
    Mutation(
        "Deleted replies stay in the database's free pages",
        "server/deploy/database.py",
        'base.execute("VACUUM")',
        'base.execute("SELECT 1")',
        "test_what_flower_deleted_is_gone_too",
    ),
    Mutation(
        "Deleted replies stay in the write-ahead log",
        "server/deploy/database.py",
        "wal_checkpoint(TRUNCATE)",
        "wal_checkpoint(PASSIVE)",
        "test_a_reply_is_in_no_file_after_its_run",
    ),
)


# --- running them ----------------------------------------------------------------------

# Wherever the project is installed, the copy must be what is tested.
INSIDE = """
import importlib, pathlib, sys
import pytest
for name in ("client", "common", "server"):
    file = importlib.import_module(f"idiolect.{name}").__file__
    if not pathlib.Path(file).resolve().is_relative_to(pathlib.Path.cwd()):
        sys.exit(f"idiolect.{name} was imported from {file}, not from the copy")
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Outcome:
    """What came of running tests: pytest's exit code, who failed, what it printed."""

    code: int
    failed: tuple[str, ...]
    printed: str


def copy_of_the_code(place: Path, root: Path = ROOT) -> Path:
    """Copy what tests need below `place`, with links that spell the packages out."""
    copy = place.resolve() / "repository"
    forget = shutil.ignore_patterns("__pycache__", ".*", "build")
    for name in (*PACKAGES, "tests", "benchmarks"):  # some tests use what measures
        if (root / name).exists():
            shutil.copytree(root / name, copy / name, ignore=forget)
    shutil.copy(root / "pyproject.toml", copy)
    links = place.resolve() / "packages" / "idiolect"
    links.mkdir(parents=True)
    for name in PACKAGES:
        (links / name).symlink_to(copy / name)
    return copy


def run_tests(copy: Path, nodes: list[str]) -> Outcome:
    """Run tests of the copy in a process of their own, up to the first that fails."""
    paths = [str(copy.parent / "packages"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Python tells a stale .pyc by size and second: a mutation may keep both.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-x", "-q", "-p", "no:cacheprovider", *nodes]
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, *options],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
    )
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return Outcome(done.returncode, tuple(failed), done.stdout)


def try_out(copy: Path, mutation: Mutation) -> tuple[str, str]:
    """Apply a mutation and take it back.

    Returns
    -------
    tuple
        The test that failed, or nothing; and if nothing, why.
    """
    path = copy / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        return "", f"its text occurs {text.count(mutation.old)} times in the file"
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        outcome = run_tests(copy, [mutation.node])
    except subprocess.TimeoutExpired:
        return "", f"the test does not end within {LONGEST} s"
    finally:
        path.write_text(text)
    if outcome.failed:
        return outcome.failed[0], ""
    if outcome.code == 0:
        return "", "the test passes"
    # A mutation that cannot even be imported proves nothing about the tests.
    return "", f"the test could not be run:\n{outcome.printed}"


def page(rows: list[tuple[Mutation, str]]) -> str:
    """Text of docs/mutations.md, from (mutation, test that failed)."""
    caught = sum(bool(failed) for _, failed in rows)
    lines = [
        "# Mutations",
        "",
        "Written by `python benchmarks/mutations.py`; don't edit. Each line is a mistake",
        "made on purpose in a copy of the code, and the test that failed because of it",
        "(and passes without). The mistakes themselves, as old and new text, are declared",
        f"in that file. {caught} of {len(rows)} are noticed.",
        "",
        "| Mistake | File | Test that fails |",
        "| --- | --- | --- |",
    ]
    for mutation, failed in rows:
        test = f"`{failed}`" if failed else "**none**"
        lines.append(f"| {mutation.title} | `{mutation.file}` | {test} |")
    return "\n".join(lines) + "\n"


def last_time(mutation: Mutation) -> str:
    """The test that noticed a mutation when it was last run, as the page has it."""
    start = f"| {mutation.title} | `{mutation.file}` | `"
    lines = PAGE.read_text().splitlines()
    return next((ln[len(start) : -3] for ln in lines if ln.startswith(start)), "")


def main() -> int:
    """Run the mutations, all or some, and return the exit code."""
    parser = argparse.ArgumentParser(description="Break the code; see a test fail.")
    parser.add_argument("part", nargs="?", default="", help="part of a title")
    part = parser.parse_args().part.lower()
    chosen = [m for m in MUTATIONS if part in m.title.lower()]
    rows: list[tuple[Mutation, str]] = []
    with tempfile.TemporaryDirectory() as place:
        copy = copy_of_the_code(Path(place))
        nodes = list(dict.fromkeys(mutation.node for mutation in chosen))
        sound = run_tests(copy, nodes)
        if sound.code:
            print(sound.printed)
            print("These tests must pass on the code as it is: nothing was tried.")
            return 1
        for number, mutation in enumerate(chosen, 1):
            failed, why = try_out(copy, mutation)
            rows.append((mutation, failed))
            verdict = f"noticed by {failed}" if failed else f"NOT NOTICED: {why}"
            print(f"{number}/{len(chosen)} {mutation.title}: {verdict}", flush=True)
    known = dict(rows)
    everything = [(m, known[m] if m in known else last_time(m)) for m in MUTATIONS]
    PAGE.write_text(page(everything))
    missed = sum(not failed for _, failed in rows)
    print(f"{len(rows) - missed} of {len(rows)} mutations are noticed by a test.")
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
