"""The rules: what each of them looks at, in which order it ranks, and what it believes."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from supsup_online import inference
from supsup_online.bank import MaskBank
from supsup_online.decide import RULES, Decider, RuleSettings
from supsup_online.errors import SpecError
from supsup_online.running_loss import Agreement, RunningLoss
from supsup_online.stats import MaskStats
from unit import tiny


@lru_cache(maxsize=1)
def trained():
    """A learner that knows permuted tasks 0 and 1 as masks 0 and 1."""
    subject = tiny.learner()
    for task in range(2):
        assert tiny.run(subject, tiny.permuted(task)(40, seed=task))[-1].mask_id == task
    subject.sync()
    return subject


def prepared(batch):
    net = trained().network
    return net.inputs(batch.x), net.labels(batch.y)


def batch_of(task):
    return prepared(next(tiny.permuted(task)(1, seed=33)))


def verdict_of(x, y, rule="loss", *, stats=None, bank=None, stream="", **options):
    subject = trained()
    bank = subject.bank if bank is None else bank
    return Decider(subject.network, RuleSettings(rule, **options))(bank, stats or subject.stats, stream, x, y)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_bank_knows_nothing(rule):
    found = verdict_of(*batch_of(0), rule, bank=MaskBank(trained().network.layout, 3))
    assert (found.known, found.examined, found.ratio) == ((), (), None)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_ranks_the_mask_of_a_learnt_task_first(rule, task):
    found = verdict_of(*batch_of(task), rule)
    assert found.known[0].mask_id == task
    assert found.examined[0].mask_id == task


@pytest.mark.parametrize("rule", ["loss", "exact", "one-shot"])
def test_rules_that_look_at_the_loss_do_not_believe_in_any_mask_for_a_new_task(rule):
    found = verdict_of(*batch_of(2), rule)
    assert not any(candidate.agrees for candidate in found.known)
    assert [candidate.mask_id for candidate in found.examined].count(0) == 1


def test_the_loss_rule_ranks_by_the_mean_loss_of_the_first_rows():
    x, y = batch_of(0)
    found = verdict_of(x, y, rows=7)
    losses = inference.exact_losses(trained().network, trained().bank.stacked([0, 1]), x[:7], y[:7]).mean(1)
    assert [c.mask_id for c in found.examined] == np.argsort(losses).tolist()
    assert {c.mask_id: c.statistic for c in found.examined} == pytest.approx(dict(enumerate(losses)))


def test_the_exact_rule_ranks_by_the_mean_entropy_of_the_first_rows():
    x, y = batch_of(1)
    found = verdict_of(x, y, "exact", rows=7)
    entropies = inference.exact_entropies(trained().network, trained().bank.stacked([0, 1]), x[:7]).mean(1)
    assert {c.mask_id: c.statistic for c in found.examined} == pytest.approx(dict(enumerate(entropies)))


def test_the_exact_rule_knows_only_masks_near_their_usual_entropy():
    x, y = batch_of(0)
    assert [c.mask_id for c in verdict_of(x, y, "exact", familiar=0.25).known] == [0]
    assert {c.mask_id for c in verdict_of(x, y, "exact", familiar=1.0).known} == {0, 1}


@pytest.mark.parametrize("rule", ["loss", "exact", "one-shot"])
def test_residuals_are_taken_over_the_whole_batch(rule):
    subject = trained()
    x, y = batch_of(0)
    known = verdict_of(x, y, rule, rows=2).known[0]
    row = inference.exact_losses(subject.network, subject.bank.stacked([0]), x, y)[0]
    expected = subject.stats[0].loss.residual(row, np.log(tiny.CLASSES), Agreement())
    assert known.residual == pytest.approx(expected)
    assert known.agrees is True


def test_a_candidate_agrees_up_to_the_tolerance():
    x, y = batch_of(0)
    residual = verdict_of(x, y).known[0].residual
    stats = {**trained().stats, 0: replace(trained().stats[0], loss=RunningLoss(-100.0, 1e-6, 50))}
    assert verdict_of(x, y, stats=stats).known[0].mask_id == 0
    assert verdict_of(x, y, stats=stats).known[0].agrees is False
    assert verdict_of(x, y, agreement=Agreement(tolerance=max(residual, 0) + 1.0)).known[0].agrees is True


def test_the_checked_candidates_are_sorted_by_their_loss_over_the_whole_batch():
    x, y = batch_of(0)
    other_x, other_y = batch_of(1)
    mixed_x, mixed_y = torch.cat([other_x[:2], x]), torch.cat([other_y[:2], y])
    found = verdict_of(mixed_x, mixed_y, rows=2)
    assert found.known[0].mask_id == 0
    assert found.known[0].statistic > found.known[1].statistic, "the first two rows alone spoke for the other mask"


@pytest.mark.parametrize("rule", ["one-shot", "paper"])
def test_a_superposition_is_padded_with_the_untrained_masks_that_come_next(rule):
    subject, (x, y) = trained(), batch_of(0)
    found = verdict_of(x, y, rule, rows=8, superposed=5)
    pads = [subject.network.untrained_mask(mask_id) for mask_id in (2, 3, 4)]
    outcome = inference.one_shot(subject.network, np.stack([*subject.bank.stacked([0, 1]), *pads]), x[:8])
    assert found.ratio == pytest.approx(outcome.ratio)
    statistics = {candidate.mask_id: candidate.statistic for candidate in found.examined}
    assert statistics == pytest.approx(dict(enumerate(5 * outcome.nu[:2])))


def test_a_bank_large_enough_is_not_padded():
    subject, (x, y) = trained(), batch_of(0)
    found = verdict_of(x, y, "paper", superposed=2)
    assert found.ratio == pytest.approx(inference.one_shot(subject.network, subject.bank.stacked([0, 1]), x).ratio)


def test_the_pads_follow_when_the_next_id_moves_on():
    subject, (x, y) = trained(), batch_of(0)
    decide = Decider(subject.network, RuleSettings("paper"))
    bank = MaskBank(subject.network.layout, 10)
    ratios = []
    for mask_id, next_id in ((0, 1), (0, 4), (0, 9)):
        bank.put(mask_id, subject.bank.words(0))
        bank.next_id = next_id
        fresh = Decider(subject.network, RuleSettings("paper"))(bank, subject.stats, "", x, y)
        assert decide(bank, subject.stats, "", x, y) == fresh, "what was kept from earlier decisions changes nothing"
        ratios.append(fresh.ratio)
    assert len(set(ratios)) == 3
    assert len(decide._pads) == 4, "pads that lie behind are forgotten"


@pytest.mark.parametrize("rule", ["one-shot", "paper"])
def test_a_larger_epsilon_makes_the_one_shot_rules_know_less(rule):
    x, y = batch_of(0)
    ratio = verdict_of(x, y, rule).ratio
    assert verdict_of(x, y, rule, epsilon=ratio - 1.01).known
    assert not verdict_of(x, y, rule, epsilon=ratio - 0.99).known


def test_an_epsilon_beyond_the_ratio_leaves_the_masks_examined_but_not_known():
    found = verdict_of(*batch_of(0), "one-shot", epsilon=10.0)
    assert found.known == ()
    assert [candidate.mask_id for candidate in found.examined] == [0, 1]


def test_the_paper_rule_never_looks_at_losses_or_labels():
    x, y = batch_of(0)
    plain = verdict_of(x, y, "paper")
    absurd = {mask_id: MaskStats(batches=9, loss=RunningLoss(-1e6, 1e-6, 9)) for mask_id in (0, 1)}
    assert verdict_of(x, torch.zeros_like(y), "paper", stats=absurd) == plain
    assert all(candidate.agrees is None and candidate.residual is None for candidate in plain.examined)
    assert verdict_of(x, y, "one-shot", stats=absurd).known[0].agrees is False


def test_at_most_five_masks_are_examined_however_many_there_are():
    subject = trained()
    bank = MaskBank(subject.network.layout, 20)
    for words in tiny.random_masks(subject.network, 12):
        bank.allocate(words)
    stats = {mask_id: MaskStats(batches=9) for mask_id in bank}
    for rule in RULES:
        found = verdict_of(*batch_of(0), rule, bank=bank, stats=stats, epsilon=0.0, familiar=5.0)
        assert len(found.examined) == 5
        assert len({candidate.mask_id for candidate in found.examined}) == 5


@pytest.mark.parametrize("rule", ["loss", "exact", "one-shot"])
def test_a_mask_in_its_first_batches_is_seen_by_no_other_stream_than_the_one_that_trains_it(rule):
    x, y = batch_of(0)
    stats = {0: replace(trained().stats[0], batches=4, stream="own"), 1: trained().stats[1]}
    assert verdict_of(x, y, rule, stats=stats, stream="own", settled=5).known[0].mask_id == 0
    assert [c.mask_id for c in verdict_of(x, y, rule, stats=stats, stream="other", settled=5).examined] in ([1], [])
    assert verdict_of(x, y, rule, stats=stats, stream="other", settled=4).known[0].mask_id == 0


def test_the_paper_rule_sees_every_mask_from_its_first_batch_on():
    stats = {mask_id: MaskStats(batches=1, stream="own") for mask_id in (0, 1)}
    assert verdict_of(*batch_of(0), "paper", stats=stats, stream="other").known[0].mask_id == 0


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "guess"},
        {"objective": "h"},
        {"rows": 0},
        {"superposed": 1},
        {"epsilon": -0.1},
        {"epsilon": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(SpecError):
        RuleSettings(**options)


@pytest.mark.parametrize("rule", ["loss", "exact"])
def test_among_many_masks_a_short_list_by_the_first_rows_is_enough(rule):
    subject = trained()
    x, y = batch_of(1)
    bank, stats = MaskBank(subject.network.layout, 100), {}
    for mask_id, words in enumerate(tiny.random_masks(subject.network, 60)):
        bank.put(mask_id, subject.bank.words(1) if mask_id == 41 else words)
        stats[mask_id] = subject.stats[1]
    short = Decider(subject.network, RuleSettings(rule=rule, first_rows=2, shortlist=5))(bank, stats, "s", x, y)
    whole = Decider(subject.network, RuleSettings(rule=rule, shortlist=1000))(bank, stats, "s", x, y)
    assert short.examined[0].mask_id == whole.examined[0].mask_id == 41
    assert short.examined[0].statistic == pytest.approx(whole.examined[0].statistic), "in the end on all rows"


def test_a_mask_that_the_first_rows_rank_low_is_found_while_it_is_among_the_better_quarter(monkeypatch):
    net = tiny.network()
    bank = MaskBank(net.layout, 200)
    masks = tiny.random_masks(net, 160)
    places = {words.tobytes(): i for i, words in enumerate(masks)}
    for mask_id, words in enumerate(masks):
        bank.put(mask_id, words)
    losses = np.random.default_rng(0).uniform(1, 2, (160, 32)).astype(np.float32)
    losses[77] = 0.0
    losses[77, :4] = np.quantile(losses[:, :4].mean(axis=1), 0.2)  # the 33rd of 160, so off a short list of 32
    seen = []

    def measured(_network, words, x, y):
        seen.append((len(words), len(x)))
        return losses[[places[w.tobytes()] for w in words]][:, x[:, 0, 0].long()]

    monkeypatch.setattr(inference, "exact_losses", measured)
    x = torch.arange(32.0).reshape(32, 1, 1).expand(32, 4, 4)
    verdict = Decider(net, RuleSettings(rows=32))(
        bank, {i: MaskStats(batches=9) for i in bank}, "s", x, torch.zeros(32, dtype=torch.int64)
    )
    assert verdict.examined[0].mask_id == 77
    assert seen[:-1] == [(160, 4), (40, 4), (32, 24)], "fewer masks, more rows; no row is measured twice"


@pytest.mark.parametrize(
    "wrong", [{"first_rows": 0}, {"shortlist": 4}, {"usual": -1.0}, {"usual": float("nan")}, {"looks": -1}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(SpecError):
        RuleSettings(**wrong)
