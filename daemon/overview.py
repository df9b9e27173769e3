"""The bank at a glance, as JSON for the page."""

import math
import time
from contextlib import suppress
from typing import Any

from daemon.cli_bank import describe
from daemon.following import Stats
from daemon.replica import TRAFFIC_S, Replica

_NUMBERS = ("accuracy", "loss", "entropy", "density")
_MOST_WHOLE = 2**53  # JavaScript counts no further, and orjson writes no larger than 64 bits


def of(replica: Replica) -> dict[str, Any]:
    """Everything that the page shows; numbers that are not finite are null."""
    settings, follower, snapshot = replica.settings, replica.follower, replica.newest()
    shown: dict[str, Any] = {
        "bank": replica.reader.keys.bank,
        "now_ms": time.time_ns() // 1_000_000,
        "version": 0 if snapshot is None else snapshot.version,
        "masks": 0 if snapshot is None else len(snapshot),
        "budget": 0 if follower is None else follower.budget,
        "ready": not replica.reasons,
        "reasons": replica.reasons,
        "staleness_s": _finite(replica.staleness_s),
        "staleness_limit_s": settings.staleness_limit_s,
        "threshold": round(1 - settings.novel_margin, 6),
        "requests": {
            "answered": replica.metrics.counted("answered"),
            "refused": replica.metrics.counted("refused"),
            "failed": replica.metrics.counted("failed"),
        },
        "traffic_interval_s": TRAFFIC_S,
        "fingerprint": "",
        "network": None,
        "mask_stats": [],
        "decisions": [],
    }
    total, recent = replica.traffic.shown()
    shown["requests"]["rows"] = sum(total.values())
    if follower is not None and snapshot is not None:
        spec = snapshot.network.spec
        shown["fingerprint"] = snapshot.network.fingerprint
        shown["network"] = {
            "architecture": spec.architecture,
            "input_shape": list(spec.input_shape),
            "classes": spec.classes,
            "outputs": spec.outputs,
        }
        shown["mask_stats"] = [
            _mask(mask_id, stats) | {"answered": total.get(mask_id, 0), "traffic": recent.get(mask_id, [])}
            for mask_id, stats in sorted(follower.stats.items())
        ]
        shown["decisions"] = [_decision(event) for event in follower.decisions]
    return shown


def _mask(mask_id: int, stats: Stats) -> dict[str, Any]:
    whole = {name: _whole(stats.get(name)) for name in ("batches", "samples", "updated_ms")}
    return {"id": mask_id, **whole, **{name: _number(stats.get(name)) for name in _NUMBERS}}


def _decision(event: Stats) -> dict[str, Any]:
    text = event.get("type", "")
    with suppress(KeyError, ValueError, TypeError, OverflowError, RecursionError):  # anybody may write to the stream
        text = describe(event)
    return {
        "version": _whole(event.get("version")),
        "time_ms": _whole(event["id"].partition("-")[0]),
        "type": event.get("type", ""),
        "text": text.encode(errors="replace").decode(),  # JSON inside an event can name lone surrogates
    }


def _whole(text: str | None) -> int:
    """A number that the page can count with; 0 where there is none."""
    return int(max(-_MOST_WHOLE, min(_number(text) or 0, _MOST_WHOLE)))


def _number(text: str | None) -> float | None:
    try:
        return _finite(float(text or "nan"))
    except ValueError:
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
