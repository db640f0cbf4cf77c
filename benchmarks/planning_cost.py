"""What planning costs: time and peak memory of ``plan`` against a forward pass over as much text.

``python benchmarks/planning_cost.py`` (about twenty minutes on two cores). Every row is a fresh process: ``evaluate``
on ``--windows`` windows of 2048 tokens, ``plan`` calibrated on as many, and ``plan`` again for another ratio, which
takes what was measured from its work folder. SmolLM2-135M in fp32; all times are multiples of the first row's.
"""

import argparse
import tempfile
from pathlib import Path

from common import VALID_TEXT, cost, machine, need_data, save, smollm2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8)
    windows = parser.parse_args().windows
    need_data()
    model = smollm2()
    forward = ("--text", VALID_TEXT, "--evaluation-windows", windows, "--dtype", "float32")
    rows = {"forward pass (evaluate)": cost("evaluate", model, *forward)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtypes = ("--dtype", "float32", "--calibration-dtype", "float32")
        plan = ("plan", model, "--calibration", VALID_TEXT, "--windows", windows, *dtypes, "--work", folder / "work")
        rows["plan"] = cost(*plan, "--ratio", "0.2", "-o", folder / "20.json")
        rows["plan for another ratio, with --work"] = cost(*plan, "--ratio", "0.4", "-o", folder / "40.json")
    base = next(iter(rows.values()))
    for name, row in rows.items():
        row["times_forward"] = row["seconds"] / base["seconds"]
        row["memory_times_forward"] = row["peak_mib"] / base["peak_mib"]
        print(f"{name:40} {row['times_forward']:6.2f} x the time, {row['memory_times_forward']:5.2f} x the memory")
    save("planning-cost", {"machine": machine(), "windows": windows, "rows": rows})


if __name__ == "__main__":
    main()
