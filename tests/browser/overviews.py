"""What a replica may say of its bank, for states that are hard to bring about: thousands of masks, staleness."""

import time
from typing import Any

import numpy as np

from browser.real_replica import HOSTILE_STREAM, KNOWN_TASKS


def overview_of(masks: int = KNOWN_TASKS, *, busy: int = 8) -> dict[str, Any]:
    """A bank of so many masks, the first of them busy."""
    now_ms = int(time.time() * 1000)
    draws = np.random.default_rng(7)
    stats = []
    for mask in range(masks):
        wave = 40 * np.exp(-(((np.arange(60) - 8 * mask) / 12) ** 2)) + draws.integers(0, 6, 60)
        traffic = wave.astype(int).tolist() if mask < busy else []
        stats.append(
            {
                "id": mask,
                "batches": 193 + 31 * mask,
                "samples": 128 * (193 + 31 * mask),
                "accuracy": 0.91 - 0.03 * (mask % 7),
                "loss": 0.31,
                "entropy": 0.28 + 0.05 * (mask % 5),
                "density": 0.5,
                "updated_ms": now_ms - 7000 * mask**2,
                "answered": sum(traffic),
                "traffic": traffic,
            }
        )
    decisions = [
        {"version": 12, "time_ms": now_ms - 4000, "type": "reuse", "text": "digits:0@1800  drift: back to mask 1"},
        {
            "version": 11,
            "time_ms": now_ms - 95_000,
            "type": "allocate",
            "text": f"{HOSTILE_STREAM}@1200  drift: new mask",
        },
        {
            "version": 9,
            "time_ms": now_ms - 400_000,
            "type": "allocate",
            "text": "digits:0@900  first batch: new mask 0",
        },
    ]
    return {
        "bank": "demo",
        "now_ms": now_ms,
        "version": 12,
        "masks": masks,
        "budget": 2500,
        "ready": True,
        "reasons": {},
        "staleness_s": 0.4,
        "staleness_limit_s": 30.0,
        "fingerprint": "5f0c9a77e21b4d3388aa",
        "network": {"architecture": "lenet-300-100", "input_shape": [28, 28], "classes": 10, "outputs": 500},
        "threshold": 0.75,
        "requests": {"answered": 1210, "rows": 1214, "refused": 3, "failed": 0},
        "traffic_interval_s": 5.0,
        "mask_stats": stats,
        "decisions": decisions,
    }
