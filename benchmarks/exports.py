"""Exports of compressed models beside those of the original, in their own runtimes: size, memory, speed, agreement.

``python benchmarks/exports.py FOLDER ...`` takes folders that ``basis-sharing compress`` wrote from SmolLM2-135M,
exports them and the original to every runtime (into ``--into``; what is there is used again), and measures them in
turns. Half an hour on two cores for one folder. Needs ``pip install -e '.[onnx,openvino]'``, and for ``--engines
executorch``, whose rows join the others, an environment with ``'.[executorch]'``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import basis_sharing
from basis_sharing.engines.base import ENGINES, MANIFEST
from basis_sharing.results.export import ExportResult
from common import RESULTS, ROOT, machine, save, smollm2

FORMS = dict.fromkeys(("onnx", "openvino", "executorch"), ("float32", "int8"))
FILE = RESULTS / "exports.json"
PROMPT, NEW, BATCHES = 256, 32, (1, 8)


def exported(model: Path, engine: str, weights: str, into: Path, name: str) -> Path:
    """Return the export of a model, which is made unless it is there."""
    folder = into / f"{name}-{engine}-{weights}"
    if not (folder / MANIFEST).is_file():
        basis_sharing.export(model, folder, to=engine, weights=weights)
    found = ExportResult.read(folder / MANIFEST)
    size, check = found.bytes_on_disk / 2**20, found.check
    print(
        f"{folder.name:32} {size:7.1f} MiB, {check.same} of {check.tokens} tokens, {check.largest_difference:.2g}, "
        f"{check.nats:.2g} nats",
        flush=True,
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="compressed folders")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "exports")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["onnx", "openvino"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    missing = [folder for folder in options.folders if not (folder / "config.json").is_file()]
    if missing:
        sys.exit(f"error: {missing[0]} is no compressed folder: basis-sharing compress writes one.")
    options.into.mkdir(parents=True, exist_ok=True)
    models = {"original": smollm2(), **{folder.name: folder for folder in options.folders}}
    before = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.is_file() else []
    rows: list[dict[str, Any]] = [row for row in before if row["engine"] not in options.engines]
    for engine in options.engines:
        for weights in FORMS[engine]:
            folders = {name: exported(model, engine, weights, options.into, name) for name, model in models.items()}
            result = basis_sharing.bench(
                list(folders.values()),
                engine=engine,
                prompt_tokens=PROMPT,
                new_tokens=NEW,
                batch_sizes=[size for size in BATCHES if size <= (ENGINES[engine].largest_batch or size)],
                repeats=options.repeats,
                device="cpu",
            )
            for (name, folder), measured in zip(folders.items(), result.models, strict=True):
                about = measured.model_dump(exclude={"model", "label", "work", "predicted"})
                check = ExportResult.read(folder / MANIFEST).check.model_dump()
                versions = {"versions": result.versions} if name == "original" else {}
                rows.append({"engine": engine, "weights": weights, "name": name, "check": check, **about, **versions})
                speeds = {f"{t.workload} {t.batch}": round(t.speed.median, 3) for t in measured.timings}
                print(f"{engine} {weights} {name}: {speeds}", flush=True)
            save("exports", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
