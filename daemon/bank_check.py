"""Whether the entries of a bank make sense together: from a file, or as they lie in Redis.

What passes is what a trainer can go on with: the same functions read it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from daemon.checkpoint import ANSWERS_FIELD, STREAM_FIELD, stream_fields
from daemon.networks import regenerated
from daemon.records import AnswerMark
from daemon.redis_keys import BANK_NAME
from supsup_online import codec, models
from supsup_online.bank_file import MAX_NUMBER, decode_fields, mask_ids
from supsup_online.bitpack import MaskLayout
from supsup_online.errors import CodecError, SpecError
from supsup_online.network import Network
from supsup_online.optimisers import OPTIMISERS
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats

_MOST_SPEC_BYTES: Final = 1000  # of one value
_MOST_STREAM_BYTES: Final = 2**20  # of one stream's JSON; 10,000 residuals take a quarter of it
_MOST_WEIGHTS_UNASKED: Final = 2**24  # regenerated for a bank without masks, whose size would show what is meant


@dataclass(frozen=True, slots=True)
class BankSummary:
    """What a bank holds.

    Attributes:
        bank: its name.
        version: its version.
        epoch: the fence of its newest trainer.
        masks: number of masks.
        hot: number of hot states.
        streams: number of streams.
        totals: counters.
        positions: `topic:partition` -> next offset.
        spec: as text, fingerprint included.
    """

    bank: str
    version: int
    epoch: int
    masks: int
    hot: int
    streams: int
    totals: dict[str, int]
    positions: dict[str, int]
    spec: dict[str, str]


@dataclass(slots=True)
class BankCheck:
    """Takes the entries of a bank one by one, in the order of `bank_file`, and refuses what makes no sense.

    Args:
        sizes: name -> size in bytes of all entries that will come.
        weights_file: the bank's trained weights, where it has any.
    """

    sizes: Mapping[str, int]
    weights_file: Path | None = None
    network: Network | None = None
    _about: dict[str, str] = field(default_factory=dict)
    _spec: dict[str, str] = field(default_factory=dict)
    _totals: dict[str, int] = field(default_factory=dict)
    _positions: dict[str, int] = field(default_factory=dict)
    _streams: int = 0

    def take(self, name: str, payload: bytes) -> None:
        """Check one entry.

        Raises:
            CodecError: it makes no sense; the message names the entry.
            ConfigError: the bank's weights are trained, and their file is not given, or is another one.
        """
        kind, _, rest = name.partition(":")
        try:
            match kind:
                case "mask" | "state":
                    self._take_bits(kind, payload)
                case "bank":
                    self._take_bank(_text(payload))
                case "spec":
                    self._take_spec(_text(payload))
                case "totals":
                    self._take_totals(_text(payload))
                case "stats":
                    MaskStats.from_text(_text(payload))
                case _:
                    self._take_progress(rest, _text(payload))
        except (CodecError, SpecError, LookupError, ValueError) as error:
            raise CodecError(f"{name}: {error}") from error

    def summary(self) -> BankSummary:
        """What the bank holds; once all entries have been taken."""
        return BankSummary(
            bank=self._about["name"],
            version=int(self._about["version"]),
            epoch=int(self._about["epoch"]),
            masks=len(mask_ids(self.sizes)),
            hot=sum(name.startswith("state:") for name in self.sizes),
            streams=self._streams,
            totals=self._totals,
            positions=self._positions,
            spec=self._spec,
        )

    @property
    def spec(self) -> BankSpec:
        """The spec; once its entry has been taken."""
        return BankSpec.from_text(self._spec)

    def _take_bank(self, text: dict[str, str]) -> None:
        if text.keys() != {"name", "version", "epoch"}:
            raise CodecError(f"fields {', '.join(sorted(text))} instead of name, version, epoch")
        if not BANK_NAME.fullmatch(text["name"]):
            raise CodecError(f"{text['name'][:100]!r} is no name of a bank")
        for name in ("version", "epoch"):
            _whole(name, text[name], MAX_NUMBER)
        self._about = text

    def _take_spec(self, text: dict[str, str]) -> None:
        for name, value in text.items():
            if len(value) > _MOST_SPEC_BYTES:
                raise CodecError(f"{name} is longer than {_MOST_SPEC_BYTES} characters")
        spec = BankSpec.from_text(text)
        layout = MaskLayout.of(models.build(spec.architecture, spec.input_shape, spec.outputs))
        # Before any weight is drawn: a mask's size says how many there can be.
        for mask_id in mask_ids(self.sizes):
            if self.sizes[f"mask:{mask_id}"] != codec.mask_bytes(layout):
                raise CodecError(f"mask:{mask_id} has not the size of a mask of {spec.architecture}")
        stored = text["fingerprint"]
        if mask_ids(self.sizes) or layout.weight_count <= _MOST_WEIGHTS_UNASKED:
            self.network = regenerated(spec, self.weights_file)
            if stored != self.network.fingerprint:
                raise CodecError(
                    f"weights regenerated from seed {spec.weight_seed} have fingerprint "
                    f"{self.network.fingerprint[:12]}, the bank's have {stored[:12]}: its masks mean nothing here"
                )
        self._spec = text

    def _take_totals(self, text: dict[str, str]) -> None:
        self._totals = {name: _whole(name, value, 2**63 - 1) for name, value in text.items()}
        newest = max(mask_ids(self.sizes), default=-1)
        if self._totals.get("next_id", 0) <= newest:
            raise CodecError(f"next_id is not above the newest mask's id, {newest}")

    def _take_progress(self, partition: str, text: dict[str, str]) -> None:
        self._positions[partition] = _whole("offset", text["offset"], 2**63 - 1)
        for name, value in text.items():
            if name.startswith(STREAM_FIELD):
                if len(value) > _MOST_STREAM_BYTES:
                    raise CodecError(f"{name[:100]} is longer than {_MOST_STREAM_BYTES} characters")
                stream_fields(value)
                self._streams += 1
            elif name == ANSWERS_FIELD:
                AnswerMark.from_text(value)
            elif name not in ("offset", "log"):
                raise CodecError(f"unknown field {name[:100]!r}")

    def _take_bits(self, kind: str, payload: bytes) -> None:
        if self.network is None:
            raise CodecError("it came before the spec")
        if kind == "mask":
            codec.decode_mask(self.network, payload)
            return
        name = codec.optimiser_of(payload)
        if name not in OPTIMISERS:
            raise CodecError(f"left by an unknown optimiser {name!r}")
        if codec.decode_hot(self.network, OPTIMISERS[name](), payload) is None:
            raise CodecError(f"its number of moments is not that of {name}")


def as_json(summary: BankSummary) -> dict[str, Any]:
    """What `bank verify --json` prints."""
    return {
        "bank": summary.bank,
        "version": summary.version,
        "epoch": summary.epoch,
        "masks": summary.masks,
        "hot": summary.hot,
        "streams": summary.streams,
        "totals": summary.totals,
        "positions": summary.positions,
        "spec": summary.spec,
    }


def _text(payload: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in decode_fields(payload).items()}


def _whole(name: str, text: str, most: int) -> int:
    number = int(text)
    if not 0 <= number <= most:
        raise CodecError(f"{name} {number} lies outside 0..{most}")
    return number
