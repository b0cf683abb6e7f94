"""The article's claims and open questions as small experiments: what each compares, its figure and its table.

    python benchmarks/experiments.py                              # all of them; if stopped, run it again to continue
    python benchmarks/experiments.py queries --bccd path/to/bccd  # one
    python benchmarks/experiments.py queries --show               # only its figure and table, from docs/experiments/results

Each experiment is a ``boxquery compare`` on the built-in scenes, and one on BCCD (364 photographs of blood cells, Pascal VOC layout)
if its folder is given: preset "tiny", 128 pixels, batches of 4, two seeds or more, and the pre-trained backbone of
benchmarks/convergence.py, which the shorter ones freeze: they compare transformers on the same features, in two thirds of the time. Runs
that several experiments share, and the finished ones of benchmarks/convergence.py with the first seed (its second draws other scenes),
are reused. Comparisons are in ``--runs``; their records and figures go to docs/experiments, where each page's table is regenerated between
its two marks. Paths are stored in each run's configuration as given, so give them relative to the same folder every time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml
from matplotlib.figure import Figure

from boxquery.compare.command import compare
from boxquery.compare.plan import CompareFlags
from boxquery.files import atomic_write, write_json
from boxquery.models.options import STRATEGIES
from cells import NOT_MEASURED, put_into_page, svg
from convergence import BODY, FIVE, HERE, PLAIN, backbone

DOCS = HERE.parent / "docs" / "experiments"
RATE = 5e-4
#: the data's names on the pages, and the number of objects in its fullest image (the fewest queries that are possible)
DATA, FULLEST = {"scenes": "built-in scenes", "bccd": "BCCD"}, {"scenes": 10, "bccd": 30}
SYSTEMS = ("detr", "deformable-detr", "smca-detr", "anchor-detr", "dab-detr", "sam-detr")
STRIDED = {name: value for name, value in BODY.items() if name != "output_stride"}
#: the option ``matching`` without what may be added to it
ALONE = "one-to-one"
#: experiments whose entries are a model and a strategy: their first table says what each strategy adds to the model
BY_STRATEGY = ("matching", "matching-dab", "convergence-dense")
#: that also say what a step costs, and what AP is after NMS
WITH_COSTS = ("matching", "matching-dab")
WITH_NMS = ("end-to-end", *WITH_COSTS)
Entries = dict[str, dict[str, Any]]


def entry(model: str, body: Mapping[str, Any] = BODY, lr: float = RATE, **options: Any) -> dict[str, Any]:
    """One model of a comparison: as in the article, on one map at stride 8 unless ``body`` and options say otherwise."""
    plain = {} if model in ("faster-rcnn", "retinanet", "fcos") else {"dilation": False}
    return {"model": model, "lr": lr, "options": {**plain, **PLAIN.get(model, {}), **options, "backbone_options": dict(body)}}


def convergence(data: str) -> Entries:
    """The six systems of the article, each at the learning rate that benchmarks/convergence.py chose for it."""
    known = json.loads((HERE.parent / "docs" / "convergence" / "results.json").read_text())["summary"]
    rates = {row["model"]: row["rate"] for row in known}
    return {name: entry(name, lr=rates[name]) for name in SYSTEMS}


def queries(data: str) -> Entries:
    return {f"{n}-queries": entry("deformable-detr", num_queries=n) for n in (FULLEST[data], 40, 80, 160)}


def layers(data: str) -> Entries:
    few = FULLEST[data]
    numbers = {"40-everywhere": 40, "80-everywhere": 80, f"80-40-{few}": [80, 40, few]}
    return {label: entry("deformable-detr", num_queries=n) for label, n in numbers.items()}


def positions(data: str) -> Entries:
    return {
        "sine": entry("conditional-detr"),
        "learned": entry("conditional-detr", position="learned"),
        "none": entry("conditional-detr", position="none"),
        "sine-mlp-queries": entry("conditional-detr", query_position="sine-mlp"),
        "relative-bias": entry("conditional-detr", relative_bias=True),
    }


def positions_under_gaussians(data: str) -> Entries:
    """The same for attention that is limited anyway, and that learns on photographs within these budgets."""
    return {
        "sine": entry("smca-detr"),
        "learned": entry("smca-detr", position="learned"),
        "none": entry("smca-detr", position="none"),
        "relative-bias": entry("smca-detr", relative_bias=True),
    }


def three_levels(**options: Any) -> dict[str, Any]:
    return entry("deformable-detr", STRIDED, **{"levels": 3, **options})


def convolution(data: str) -> Entries:
    return {
        "attention": three_levels(),
        "convolutional-ffn": three_levels(encoder_ffn="convolutional"),
        "hybrid": three_levels(encoder="hybrid"),
        "no-encoder": three_levels(encoder_layers=0),
    }


def end_to_end(data: str) -> Entries:
    return {name: entry(name, STRIDED) for name in ("faster-rcnn", "retinanet", "fcos")} | {"deformable-detr": three_levels()}


def cross_attention(data: str) -> Entries:
    """With it at the learning rate that benchmarks/convergence.py chose; without it at the usual one."""
    return {"with": convergence(data)["sam-detr"], "without": entry("sam-detr", cross_attention=False)}


def rates(data: str) -> Entries:
    """The two that are far behind on BCCD, at the learning rate chosen on the scenes and at higher ones."""
    tried = {"dab-detr": (2.5e-4, 5e-4, 1e-3), "anchor-detr": (5e-4, 1e-3)}
    return {f"{name}-{rate:g}": entry(name, lr=rate) for name, some in tried.items() for rate in some}


def by_strategy(model: str, start: Callable[..., dict[str, Any]]) -> Entries:
    """Every strategy by itself, and Group DETR also with four groups in place of its eleven."""
    options: dict[str, dict[str, Any]] = {strategy: {"matching": strategy} for strategy in (ALONE, *STRATEGIES)}
    options["group-of-4"] = {"matching": "group", "groups": 4}
    return {f"{model}-{label}": start(**own) for label, own in options.items()}


def matching(data: str) -> Entries:
    """Every strategy on preset "tiny" of Deformable DETR with its refinement and proposals."""
    return by_strategy("deformable-detr", partial(three_levels, box_refine=True, two_stage=True))


def matching_dab(data: str) -> Entries:
    """The same on DAB-DETR, which learns later."""
    return by_strategy("dab-detr", partial(entry, "dab-detr", lr=convergence(data)["dab-detr"]["lr"]))


def convergence_dense(data: str) -> Entries:
    """The article's five with dense supervision and without it; DETR has not begun to learn within such budgets."""
    rates = {model: convergence(data)[model]["lr"] for model in FIVE}
    return {f"{model}-{strategy}": entry(model, lr=rates[model], matching=strategy) for model in FIVE for strategy in (ALONE, "dense")}


#: images per run: enough for all six systems, for a slow learner, and for a fast one
FEW = {"scenes": 2000, "bccd": 1200}
LONG, MIDDLE, SHORT = {"scenes": 8000, "bccd": 6000}, {"scenes": 4000, "bccd": 4000}, {"scenes": 3000, "bccd": 2000}


class Experiment(NamedTuple):
    """What is compared, images per run by data set, whether the backbone is frozen, and seeds: more where differences are small."""

    entries: Callable[[str], Entries]
    images: dict[str, int]
    frozen: bool = True
    seeds: int = 2


EXPERIMENTS = {
    "convergence": Experiment(convergence, LONG, frozen=False),
    "queries": Experiment(queries, SHORT),
    "layers": Experiment(layers, SHORT, seeds=5),
    "positions": Experiment(positions, MIDDLE),
    "positions-under-gaussians": Experiment(positions_under_gaussians, {"scenes": 3000, "bccd": 3000}),
    "convolution": Experiment(convolution, SHORT),
    "end-to-end": Experiment(end_to_end, SHORT),
    "cross-attention": Experiment(cross_attention, LONG, frozen=False),
    "matching": Experiment(matching, FEW, frozen=False, seeds=3),
    "matching-dab": Experiment(matching_dab, MIDDLE, frozen=False),
    "convergence-dense": Experiment(convergence_dense, FEW, frozen=False),
    "rates": Experiment(rates, {"bccd": LONG["bccd"]}, frozen=False),
}


def run(name: str, data: str, source: str, runs: Path, jobs: int, seeds: int | None) -> None:
    """Run the comparison, and record its results without anything that names this machine."""
    experiment = EXPERIMENTS[name]
    plan = runs / f"{name}-{data}.yaml"
    atomic_write(plan, yaml.safe_dump(experiment.entries(data), sort_keys=False))
    flags = CompareFlags(
        images_seen=experiment.images[data], preset="tiny", image_size=128, batch_size=4, backbone_lr_factor=1.0,
        pretrained=str(backbone(Path("runs/convergence"))), freeze_backbone=experiment.frozen, device="cpu", precision="float32",
    )  # fmt: skip
    finished = [folder for folder in (Path("runs/convergence"), *sorted(runs.glob(f"*-{data}"))) if folder.is_dir()]
    comparison = compare(
        source, plan=plan, seeds=seeds or experiment.seeds, flags=flags, out=runs / f"{name}-{data}", jobs=jobs, adopt_from=finished
    )
    write_json(DOCS / "results" / f"{name}-{data}.json", record(comparison.result))


def record(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers behind the figure and the table."""
    kept = ("label", "seed", "status", "reason", "curve", "scores", "test", "nms", "cpu_seconds")
    plain = [{k: v for k, v in found.items() if k != "options"} for found in result["entries"]]
    return {
        **{key: result[key] for key in ("levels", "best", "lower", "conclusion", "notes")},
        "budget": result["plan"]["budget"],
        "entries": plain,
        "runs": [{k: run[k] for k in kept if k in run} for run in result["runs"]],
    }


def show(name: str) -> None:
    """Figure and table of the recorded results."""
    found = {data: DOCS / "results" / f"{name}-{data}.json" for data in EXPERIMENTS[name].images}
    results = {data: json.loads(path.read_text()) for data, path in found.items() if path.exists()}
    if results:
        draw(DOCS / f"{name}.svg", results)
    else:
        print(f"{name}: nothing measured yet")
    text = page_text(name, results)
    print(text)
    page = DOCS / f"{name}.md"
    if page.exists():
        put_into_page(page, text)


def page_text(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands between the marks of an experiment's page."""
    parts = []
    for data in EXPERIMENTS[name].images:
        result = results.get(data)
        costs = step_costs() if name in WITH_COSTS else None
        if result is None and not costs:
            parts.append(f"**{DATA[data]}**: {NOT_MEASURED}")
        elif name in BY_STRATEGY:
            parts.append(strategy_table(data, list(EXPERIMENTS[name].entries(data)), result, costs))
        if result is not None:
            parts.append(table(data, result, nms=name in WITH_NMS))
    return "\n\n".join(parts)


def step_costs() -> dict[str, Any]:
    """By entry what benchmarks/step_cost.py measured."""
    path = DOCS / "results" / "step-cost.json"
    return json.loads(path.read_text()) if path.exists() else {}


def strategy_table(data: str, labels: Sequence[str], result: Mapping[str, Any] | None, costs: Mapping[str, Any] | None) -> str:
    """In Markdown: what each strategy adds to the AP of its model, seed by seed, with alignment and duplicates; with ``costs`` also what a
    step of it costs beside one-to-one."""
    finished = {found["label"]: found for found in result["entries"]} if result else {}
    heads = ["model", "matching", "AP", "gain (lowest to highest seed)", "AP50", "attention inside (uniform)", "duplicates"]
    rows = []
    for label in labels:
        model = next(model for model in FIVE if label.startswith(f"{model}-"))
        found, cells = finished.get(label), [NOT_MEASURED] * 5
        if found is not None and result is not None:
            gain = "" if label.endswith(ALONE) else _gain(found, finished.get(f"{model}-{ALONE}"))
            own = [run for run in result["runs"] if run["label"] == label]
            cells = [f"{found['scores']['AP']:.3f}", gain, f"{found['scores']['AP50']:.3f}", _inside(own),
                     f"{100 * found['nms']['1']['duplicate_rate']:.1f} %"]  # fmt: skip
        rows.append([model, label.removeprefix(f"{model}-"), *cells])
        if costs is not None:
            cost = costs.get(label)
            rows[-1].append(f"{cost['ratio']:.2f} ({cost['low']:.2f} to {cost['high']:.2f}), {cost['ms']:.0f} ms" if cost else NOT_MEASURED)
    if costs is not None:
        heads.append("step / one-to-one (quartiles), ms")
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([f"**{DATA[data]}**, what each strategy adds:", "", *lines])


def _gain(found: Mapping[str, Any], plain: Mapping[str, Any] | None) -> str:
    """AP less that of one-to-one alone, over the seeds that both have."""
    before = dict(zip(plain["seeds"], plain["AP"], strict=True)) if plain else {}
    gains = [ap - before[seed] for seed, ap in zip(found["seeds"], found["AP"], strict=True) if seed in before]
    spread = f" ({min(gains):+.3f} to {max(gains):+.3f})" if len(gains) > 1 else ""
    return f"{mean(gains):+.3f}{spread}" if gains else NOT_MEASURED


def table(data: str, result: Mapping[str, Any], nms: bool) -> str:
    """In Markdown: accuracy with its uncertainty, images needed and costs per model; below, what the numbers support."""
    levels = result["levels"][::2]
    seconds = sum(run.get("cpu_seconds") or 0 for run in result["runs"])
    heads = [
        "",
        "AP (95 % CI)",
        "below the best (95 % CI)",
        "AP50",
        *(f"images to AP {level:g}" for level in levels),
        "attention inside (uniform)",
        "duplicates",
        "CPU s per run",
        "ms per image",
        "parameters (M)",
    ]
    if nms:
        heads += ["AP50 without NMS", "AP50 with NMS at .7", "at .5"]
    rows = []
    for found in result["entries"]:
        low, high = found["interval"]
        lower = result["lower"].get(found["label"])
        cells = [found["label"], f"{found['scores']['AP']:.3f} ({low:.3f} to {high:.3f})",
                 "" if lower is None else f"{lower['by']:.3f} ({lower['interval'][0]:.3f} to {lower['interval'][1]:.3f})",
                 f"{found['scores']['AP50']:.3f}", *(_reached(found["reached"][f"{level:g}"]["images"]) for level in levels),
                 _inside([run for run in result["runs"] if run["label"] == found["label"]]),
                 f"{100 * found['nms']['1']['duplicate_rate']:.1f} %", f"{found['cpu_seconds']:,.0f}",
                 f"{found['milliseconds']:.1f}", f"{found['parameters'] / 1e6:.2f}"]  # fmt: skip
        if nms:
            cells += [f"{found['nms'][t]['AP50']:.3f}" for t in ("1", "0.7", "0.5")]
        rows.append(cells)
    seeds = max(len(found["seeds"]) for found in result["entries"])
    budget = f"{result['budget']} each, {seeds} seed{'s' * (seeds > 1)} ({seconds / 60:,.0f} CPU minutes)"
    lines = [f"**{DATA[data]}**, {budget}:", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    lines += ["", " ".join(result["conclusion"])]
    return "\n".join(lines + [f"Not finished: {run['label']}, seed {run['seed']}: {run['status']} {run['reason']}"
                              for run in result["runs"] if run["status"] != "finished"])  # fmt: skip


def _inside(runs: Sequence[Mapping[str, Any]]) -> str:
    """Attention inside objects at the last evaluation, mean over seeds; empty for a model without queries."""
    last = [run["curve"][-1] for run in runs if run.get("curve")]
    if not last or any("inside" not in point for point in last):
        return ""
    return f"{mean(point['inside'] for point in last):.2f} ({mean(point['inside_even'] for point in last):.2f})"


def _reached(images: Sequence[float | None]) -> str:
    known = [n for n in images if n is not None]
    return (
        "not reached"
        if not known
        else f"{mean(known):,.0f}" + (f" ({len(known)} of {len(images)} seeds)" if len(known) < len(images) else "")
    )


def draw(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """For each data set AP50 against images seen from the first evaluation on, thin lines per seed and their mean; beside it final AP with
    its 95 % interval."""
    figure = Figure(figsize=(13, 3.1 * len(results)), layout="constrained")
    for row, (data, result) in zip(figure.subplots(len(results), 2, squeeze=False), results.items(), strict=True):
        colours = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(run["label"] for run in result["runs"]))}
        for label, colour in colours.items():
            curves = [run["curve"] for run in result["runs"] if run["label"] == label and "curve" in run]
            for curve in curves:
                row[0].plot([p["images"] for p in curve], [p["AP50"] for p in curve], color=colour, lw=0.6, alpha=0.6)
            if curves:
                points = list(zip(*curves, strict=False))
                images, means = [p[0]["images"] for p in points], [mean(q["AP50"] for q in p) for p in points]
                row[0].plot(images, means, color=colour, lw=1.8, marker="o" if len(means) == 1 else "")
        for y, found in enumerate(reversed(result["entries"])):
            low, high = found["interval"]
            row[1].plot((low, high), (y, y), color=colours[found["label"]], lw=2)
            row[1].plot(found["scores"]["AP"], y, "o", color=colours[found["label"]])
        row[0].set(xlabel="images seen", ylabel="AP50", title=DATA[data], xlim=0, ylim=0)
        row[1].set(xlabel=f"AP after {result['budget']}, 95 % interval", xlim=0)
        row[1].set_yticks(range(len(result["entries"])), [found["label"] for found in reversed(result["entries"])])
        for axis in row:
            axis.spines[["top", "right"]].set_visible(False)
    atomic_write(path, svg(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXPERIMENTS)}; default: all")
    parser.add_argument("--bccd", help="folder of BCCD; without it only the built-in scenes are used")
    parser.add_argument("--data", choices=list(DATA), help="use only this data set")
    parser.add_argument("--seeds", type=int, help="seeds per model (default: the experiment's)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder of the comparisons (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="only redraw figures and tables")
    args = parser.parse_args()
    if unknown := set(args.names) - EXPERIMENTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(EXPERIMENTS)}")
    (DOCS / "results").mkdir(parents=True, exist_ok=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    sources = {"scenes": "shapes"} | ({"bccd": args.bccd} if args.bccd else {})
    for name in args.names or EXPERIMENTS:
        for data, source in sources.items():
            if not args.show and args.data in (None, data) and data in EXPERIMENTS[name].images:
                run(name, data, source, args.runs, args.jobs, args.seeds)
        show(name)


if __name__ == "__main__":
    main()
