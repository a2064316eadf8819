"""Results as `excise run` writes them, made up but of the right form, for tests of what reads them."""

from __future__ import annotations

import math
import random
from typing import Any

POSITIONS = ("-1", "-2", "+1", "response")
ROLES = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


def fake_result(
    *, layers: int = 6, trials: int = 80, demo: bool = True, low_rank: bool = False, seed: int = 0
) -> dict[str, Any]:
    """A whole result: every key that the pipeline may write.

    low_rank  an edit by the search method polish, in place of projections by a schedule
    """
    chance = random.Random(seed)
    points = _points(trials, chance)
    if low_rank:
        for number, point in enumerate(points):
            point["parameters"] = _polish_parameters(number)
    front = [point for point in points if point["on_front"]]
    chosen = min(front, key=lambda point: point["rate"] + point["kl_sequence"])
    result: dict[str, Any] = {
        "model": "excise/demo" if demo else "Qwen/Qwen3-4B",
        "behavior": "demo:sealed" if demo else "refusal",
        "out": "runs/demo-sealed",
        "created": "2025-01-31T09:30:00+00:00",
        "seconds": 96.4,
        "peak_bytes": 968_000_000,
        "forecast": {"bytes": 870_000_000, "host_bytes": 870_000_000, "seconds": 80.1, "stages": {}, "moments": {}},
        "seed": 0,
        "budget": "standard",
        "command": "excise demo --out runs/demo-sealed",
        "coverage": 1.0,
        "leak": 2.14e-7,
        "leak_baked": 3.1e-4,
        "splits": {"fit": [128, 128], "tune": [50, 50], "select": [50, 50], "report": [100, 100]},
        "prompts": {split: f"{chance.getrandbits(256):064x}" for split in ("fit", "tune", "select", "report")},
        "before": {
            "rate": 0.98,
            "rate_interval": [0.93, 0.9945],
            "labels": {"behavior": 98, "comply": 2, "degenerate": 0, "deflect": 0},
            "positions": _positions(98, late=3),
        },
        "after": {
            "split": "report",
            "baseline_rate": 0.0,
            "baseline_rate_interval": [0.0, 0.037],
            "rate": 0.02,
            "rate_interval": [0.0055, 0.07],
            "labels": {"behavior": 2, "comply": 97, "degenerate": 1},
            "positions": _positions(2, late=1),
            "kl_first": {"mean": 0.0104, "median": 0.00131, "p95": 0.0523, "max": 0.2},
            "kl_sequence": {"mean": 0.0213, "median": 0.0108, "p95": 0.0627, "max": 0.314},
            "top1": 0.99,
            "perplexity_ratio": 1.012,
        },
        "search": {
            "method": "polish" if low_rank else "schedule",
            "trials": trials,
            "screened": sum(point["screened"] for point in points),
            "reason": "the smallest sequence KL at a rate of at most 0.01",
            "satisfied": True,
            "points": [{key: value for key, value in point.items() if key != "parameters"} for point in points],
        },
        "front": [
            {key: point[key] for key in ("rate", "kl_first", "kl_sequence", "parameters")}
            | {"edit": f"edits/{index:03d}.safetensors", "chosen": point is chosen}
            for index, point in enumerate(front)
        ],
        "comparison": _comparison(),
        "seal": {"reads": 1, "number": 1, "unseen": True, "note": "report split read once", "log": []},
        "controls": {
            "no_op": {"kl_first": {"mean": 0.0}, "rate": 0.98, "rate_interval": [0.93, 0.9945]},
            "random_direction": {
                "rate": 0.97,
                "rate_interval": [0.9155, 0.99],
                "kl_first": {"mean": 0.0312},
                "draws": [
                    {
                        "seed": 0,
                        "prompts": [100, 100],
                        "rate": 0.97,
                        "rate_interval": [0.9155, 0.99],
                        "kl_first": 0.0312,
                    },
                    {"seed": 1, "prompts": [32, 32], "rate": 0.94, "rate_interval": [0.799, 0.983], "kl_first": 0.0287},
                ],
            },
        },
        "verify": {"passed": True, "checks": _checks()},
        "skipped": [],
        "warnings": [],
        "stages": {"load": 0.4, "prove": 1.2, "find": 6.8, "search": 71.3, "report": 9.4, "bake": 7.3},
        "versions": {"excise": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "optuna": "5.0.0"},
    }
    result |= _anatomy(layers, chance)
    result["edit"]["file"] = "edit.safetensors"
    if low_rank:
        for site in result["edit"]["sites"]:
            site |= {"kind": "low-rank", "strength": None}
        result["edit"]["norm"] = ""
    if demo:
        result["demo"] = {"sealed_correct": [0.02, 0.95], "ordinary_correct": [0.98, 0.98], "disclaimer": [0.99, 0.98]}
    return result


def _positions(count: int, *, late: int) -> dict[str, Any]:
    rates = {"30": count - late, "50": count - late, "100": count, "512": count}
    return {
        "tokens": 512,
        "delayed": late,
        "onset": {"median": 0.0, "p95": 12.0, "max": 71},
        "histogram": [[0, 30, count - late], [30, 50, 0], [50, 100, late], [100, 150, 0], [150, None, 0]],
        "rate_by_tokens": {
            look: {"count": each, "rate": each / 100, "rate_interval": [max(0.0, each / 100 - 0.02), 1.0]}
            for look, each in rates.items()
        },
    }


def _comparison() -> dict[str, Any]:
    markers = {"prompts": 100, "first_rate": 0.98, "second_rate": 0.02, "difference": -0.96, "interval": [-0.99, -0.91]}
    markers |= {"method": "BCa bootstrap", "only_first": 96, "only_second": 0, "p_exact": 2.5e-29, "p_mid": 1.3e-29}
    note = "100 prompts cannot tell a rate of 2.0 % from 6.2 %"
    markers |= {"p_holm": 2.5e-29, "power": {"highest_rate": 0.062, "smallest_difference": 0.078, "note": note}}
    return {
        "labellers": {"markers": markers},
        "kl_first_interval": [0.0061, 0.0173],
        "kl_sequence_interval": [0.01, 0.03],
    }


def _points(trials: int, chance: random.Random) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for number in range(trials):
        strength = chance.uniform(0.0, 1.4) if number else 0.0
        skill = chance.betavariate(2, 3)
        kl = 0.0 if number == 0 else 0.0006 * math.exp(4.2 * strength) * (1 + 8 * chance.random() ** 2)
        rate = round(max(0.0, min(0.98, 1.05 - strength * (0.55 + skill))) * 50) / 50
        parameters = {
            "attention strength": strength,
            "mlp strength": strength * chance.uniform(0.5, 1.0),
            "layers": f"{chance.randint(0, 1)}–{chance.randint(4, 5)}",
            "direction layer": chance.uniform(1.5, 4.0),
            "norm": chance.choice(["none", "column"]),
        }
        points.append(
            {
                "rate": rate,
                "kl_first": kl,
                "kl_sequence": kl * chance.uniform(1.2, 2.2),
                "screened": chance.random() < 0.35 and rate > 0.3,
                "on_front": False,
                "parameters": parameters,
            }
        )
    for point in points:
        point["on_front"] = not point["screened"] and not any(
            other["rate"] <= point["rate"] and other["kl_sequence"] <= point["kl_sequence"] and other is not point
            for other in points
            if not other["screened"]
        )
    return points


def _polish_parameters(number: int) -> dict[str, Any]:
    place = {"position": "-1", "method": "mean-difference", "source": 14.0}
    place |= {"reach": "one" if number % 2 else "per-layer", "strength": 1.0}
    if number < 2:
        return {"kind": "closed form", **place, "along": 0.0}
    if number < 60:
        return {"kind": "polish", **place, "preserve": 1.5, "step": 15 * (number - 1), "along": number - 1.0}
    return {"kind": "between", **place, "strength": 1.25, "along": 1.4}


def _anatomy(layers: int, chance: random.Random) -> dict[str, Any]:
    writers = [{"layer": -1, "role": "embedding", "parameter": "model.embed_tokens.weight", "gain": None, "bias": None}]
    sites = []
    for layer in range(layers):
        depth = layer / max(layers - 1, 1)
        for role, module in ROLES.items():
            parameter = f"model.layers.{layer}.{module}.weight"
            writers.append({"layer": layer, "role": role, "parameter": parameter, "gain": None, "bias": None})
            strength = max(0.0, min(1.0, 2.2 - 4 * abs(depth - 0.55))) * (1.0 if role == "attention" else 0.72)
            if strength > 0:
                site = {"parameter": parameter, "layer": layer, "role": role, "kind": "projection", "rank": 1}
                sites.append(site | {"strength": strength, "change": 0.061 * strength})
    separability = []
    for index, position in enumerate(POSITIONS):
        for layer in range(layers):
            hump = math.exp(-(((layer / max(layers - 1, 1)) - 0.6) ** 2) / 0.12) * (1 - 0.13 * index)
            separability.append(
                {
                    "position": position,
                    "layer": layer,
                    "auc": min(1.0, 0.55 + 0.45 * hump + chance.uniform(-0.01, 0.01)),
                    "silhouette": 0.05 + 0.6 * hump + chance.uniform(-0.02, 0.02),
                    "norm_ratio": 1.0 + 0.1 * hump,
                }
            )
    spread = max(1.0, layers / 5)
    cosine = [[math.exp(-((one - other) ** 2) / (2 * spread**2)) for other in range(layers)] for one in range(layers)]
    return {
        "survey": {"layers": layers, "hidden": 192, "writers": writers, "unresolved": []},
        "directions": {
            "method": "mean-difference",
            "positions": list(POSITIONS),
            "best": {"position": "-1", "layer": round(0.6 * (layers - 1))},
            "separability": separability,
            "cosine": cosine,
        },
        "edit": {"sites": sites, "norm": "column"},
    }


def _checks() -> list[dict[str, Any]]:
    details = {
        "side files": "7 files identical",
        "headers": "57 keys in 1 files, in the same order",
        "untouched tensors": "45 tensors identical byte for byte",
        "edited tensors": "12 tensors equal to the recomputed ones",
        "finite": "no NaN, no infinity",
        "complete": "57 parameters have their tensors",
        "loads": "as LlamaForCausalLM in stock Transformers",
        "logits equal the live edit's": "relative difference 1.1e-03 (bound 4.2e-03), KL 2.0e-06 nats, over 8 prompts",
        "leak": "3.1e-04 over 5 writers at strength 1 (bound 3.9e-03)",
    }
    return [{"name": name, "passed": True, "detail": detail} for name, detail in details.items()]
