"""The coefficients of AvgGrad and AvgGradInner for k = 1 .. 8, on an MLP and on Conv4 with cross-entropy on Omniglot.

`jaxmeta taylor`, its table cut down to what was predicted, measured and wrong.

    python benchmarks/taylor.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from common import write

from jaxmeta import cli

K = tuple(str(k) for k in range(1, 9))
PROBLEMS = {"mlp, sinusoid": ("mlp", "sinusoid"), "conv4, omniglot": ("conv4", "omniglot")}


def main() -> None:
    report: dict[str, Any] = {"command": "python benchmarks/taylor.py"}
    for name, (model, dataset) in PROBLEMS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            words = ["taylor", "--k", *K, "--model", model, "--dataset", dataset, "--out", str(out)]
            if cli.main(words):
                raise SystemExit(f"jaxmeta {' '.join(words)} failed")
            found = json.loads((out / "taylor.json").read_text())
        rows = [row(verdict) for verdict in found["verdicts"]]
        report[name] = {
            "largest_error": max(abs(error) for r in rows for error in r["error"]),
            "slopes": [
                [min(s), max(s)] for s in zip(*(r["slopes"] for r in rows if None not in r["slopes"]), strict=True)
            ],
            "rows": rows,
            "reptile_as_often_printed": [
                {"k": v["k"], "printed": 2, "measured": v["coefficients"][0]["measured"], "accepted": v["accepted"]}
                for v in found["reptile_as_often_printed"]
            ],
        }
    write("taylor", report)


def row(verdict: dict[str, Any]) -> dict[str, Any]:
    columns = {name: [c[name] for c in verdict["coefficients"]] for name in ("of", "predicted", "measured", "error")}
    kept = {name: verdict[name] for name in ("method", "k", "slopes", "orderings", "accepted")}
    return {**kept, **columns, "uncertainty": [c["uncertainty"] for c in verdict["coefficients"]]}


if __name__ == "__main__":
    main()
