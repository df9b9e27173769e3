"""The mask bank against a dictionary: whatever is done to it, in whatever order, it holds what the dictionary holds."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from supsup_online.bank import BudgetError, MaskBank
from supsup_online.bitpack import MaskLayout
from supsup_online.errors import CodecError
from unit import tiny

LAYOUT = MaskLayout(((2, 65), (3, 7)))
ONE, OTHER = (LAYOUT.pack(np.random.default_rng(seed).random(LAYOUT.weight_count) < 0.4) for seed in (1, 2))
bits = tiny.masks(LAYOUT.weight_count)


class _BankAgainstDictionary(RuleBasedStateMachine):
    """The model: a dictionary of flat masks, the ids ever used, and a count of changes."""

    ids = Bundle("ids")

    @initialize(budget=st.integers(1, 6))
    def start(self, budget):
        self.bank = MaskBank(LAYOUT, budget)
        self.model = {}
        self.used = set()
        self.changes = 0

    @precondition(lambda self: not self.bank.full)
    @rule(target=ids, mask=bits)
    def allocate(self, mask):
        mask_id = self.bank.allocate(LAYOUT.pack(mask))
        assert mask_id == max(self.used, default=-1) + 1, "ids rise by one and are never given out twice"
        return self._note(mask_id, mask)

    @precondition(lambda self: self.bank.full)
    @rule(mask=bits)
    def allocate_beyond_the_budget(self, mask):
        with pytest.raises(BudgetError, match=f"budget of {self.bank.budget}"):
            self.bank.allocate(LAYOUT.pack(mask))

    @rule(mask_id=ids, mask=bits)
    def replace(self, mask_id, mask):
        self.bank.put(mask_id, LAYOUT.pack(mask))
        self._note(mask_id, mask)

    @rule(target=ids, gap=st.integers(0, 3), mask=bits)
    def restore(self, gap, mask):
        mask_id = self.bank.next_id + gap
        self.bank.put(mask_id, LAYOUT.pack(mask))
        return self._note(mask_id, mask)

    @rule(mask_id=consumes(ids))
    def remove(self, mask_id):
        if mask_id not in self.model:
            with pytest.raises(KeyError):
                self.bank.remove(mask_id)
            return
        self.bank.remove(mask_id)
        del self.model[mask_id]
        self.changes += 1

    def _note(self, mask_id, mask):
        self.model[mask_id] = mask
        self.used.add(mask_id)
        self.changes += 1
        return mask_id

    @invariant()
    def holds_what_the_dictionary_holds(self):
        assert list(self.bank) == sorted(self.model)
        assert len(self.bank) == len(self.model)
        assert self.bank.full == (len(self.model) >= self.bank.budget)
        assert self.bank.version == self.changes
        for mask_id, mask in self.model.items():
            assert mask_id in self.bank
            np.testing.assert_array_equal(LAYOUT.unpack(self.bank.words(mask_id)), mask)
            assert self.bank.density(mask_id) == mask.mean()

    @invariant()
    def its_mean_is_exactly_the_mean_of_its_masks(self):
        ones = np.sum([*self.model.values()], axis=0, dtype=np.int64) if self.model else np.zeros(LAYOUT.weight_count)
        expected = ones.astype(np.float32) / np.float32(max(1, len(self.model)))
        assert self.bank.mean.dtype == np.float32
        np.testing.assert_array_equal(self.bank.mean, expected)

    @invariant()
    def stacks_masks_in_the_order_asked_for(self):
        order = sorted(self.model, reverse=True)
        stack = self.bank.stacked(order)
        assert stack.shape == (len(order), LAYOUT.word_count)
        for row, mask_id in zip(stack, order, strict=True):
            np.testing.assert_array_equal(row, self.bank.words(mask_id))


TestBankAgainstDictionary = _BankAgainstDictionary.TestCase
TestBankAgainstDictionary.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


def test_an_empty_bank_has_a_mean_of_zeros_and_no_masks():
    bank = MaskBank(LAYOUT, 1)
    assert not bank.mean.any()
    assert bank.mean.shape == (LAYOUT.weight_count,)
    assert list(bank) == []
    assert not bank.full


def test_the_id_of_an_evicted_mask_is_not_given_out_again():
    bank = MaskBank(LAYOUT, 2)
    first, second = bank.allocate(ONE), bank.allocate(ONE)
    bank.remove(second)
    assert bank.allocate(OTHER) == 2
    assert first in bank
    assert second not in bank


def test_words_are_a_read_only_view():
    bank = MaskBank(LAYOUT, 2)
    bank.allocate(ONE)
    with pytest.raises(ValueError, match="read-only"):
        bank.words(0)[0] = 1
    np.testing.assert_array_equal(bank.words(0), ONE)


def test_the_bank_keeps_its_own_copy_of_the_words():
    bank, words = MaskBank(LAYOUT, 2), ONE.copy()
    bank.allocate(words)
    words[:] = OTHER
    np.testing.assert_array_equal(bank.words(0), ONE)


def test_a_mask_may_be_replaced_by_the_words_of_another():
    bank = MaskBank(LAYOUT, 2)
    bank.allocate(ONE)
    bank.allocate(OTHER)
    bank.put(0, bank.words(1))
    np.testing.assert_array_equal(bank.words(0), OTHER)
    np.testing.assert_array_equal(bank.mean, LAYOUT.unpack(OTHER).astype(np.float32))


def test_replacing_is_allowed_when_the_budget_is_spent():
    bank = MaskBank(LAYOUT, 1)
    bank.allocate(ONE)
    bank.put(0, OTHER)
    np.testing.assert_array_equal(bank.words(0), OTHER)


@pytest.mark.parametrize("known", [True, False])
def test_a_mask_with_padding_bits_set_is_refused_and_changes_nothing(known):
    bank = MaskBank(LAYOUT, 3)
    bank.allocate(ONE)
    damaged = OTHER.copy()
    damaged[1] |= np.uint64(1 << 63)
    with pytest.raises(CodecError, match="padding"):
        bank.put(0 if known else 1, damaged)
    with pytest.raises(CodecError, match="words of 64 bits"):
        bank.put(0 if known else 1, OTHER[:-1])
    assert list(bank) == [0]
    assert (bank.version, bank.next_id) == (1, 1)
    np.testing.assert_array_equal(bank.words(0), ONE)
    np.testing.assert_array_equal(bank.mean, LAYOUT.unpack(ONE).astype(np.float32))


def test_a_mask_that_is_not_there_is_a_key_error():
    bank = MaskBank(LAYOUT, 1)
    for ask in (bank.words, bank.density, bank.remove, lambda mask_id: bank.stacked([mask_id])):
        with pytest.raises(KeyError):
            ask(0)


def test_hundreds_of_masks_survive_growth_and_removal():
    bank = MaskBank(LAYOUT, 300)
    for i in range(300):
        bank.allocate(ONE if i % 3 else OTHER)
    for i in range(0, 300, 2):
        bank.remove(i)
    kept = list(bank)
    assert kept == list(range(1, 300, 2))
    assert all(np.array_equal(bank.words(i), ONE if i % 3 else OTHER) for i in kept)
