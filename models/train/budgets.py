"""Accuracy against the thinking budget: `python budgets.py [PONDER]` measures with the program (default: the one of
`cargo build --release`) and draws ../../docs/images/budgets.svg. `--from FILE` draws what `ponder eval --json` said
before. Nothing but Python is needed. The picture is its own stylesheet, so that it suits light and dark pages."""

import argparse
import json
import math
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs/images/budgets.svg"
BUDGETS = [0, 16, 32, 64, 128, 256, 512]
LAST = len(BUDGETS)  # where "no cap" stands
LEFT, TOP, WIDTH, HEIGHT = 52, 16, 520, 260
LINES = ["all", "trivial", "easy", "middle", "hard"]
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .grid { stroke: #ccc } .line { fill: none; stroke-width: 2 }
.all { stroke: #222; stroke-width: 3 } .trivial { stroke: #2b7a4b } .easy { stroke: #2b5f8a }
.middle { stroke: #a06a00 } .hard { stroke: #b83232 }
.auto { stroke: none; fill: #222 }
@media (prefers-color-scheme: dark) {
 text { fill: #ddd } .grid { stroke: #444 } .all { stroke: #eee } .auto { fill: #eee }
 .trivial { stroke: #5fc48a } .easy { stroke: #6cb0ea } .middle { stroke: #e0b040 } .hard { stroke: #f07878 }
}"""


def measure(program, data):
    command = [program, "eval", "--json", "--quiet", "--data", data]
    for budget in BUDGETS:
        command += ["--with", f"{budget}: --thinking-token-budget {budget}"]
    command += ["--with", "no cap:", "--with", "auto: --reasoning-effort auto"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def place(tokens):
    """A budget's place on the axis: zero, then one step for each doubling from 16 on."""
    return tokens / 16 if tokens < 16 else math.log2(tokens) - 3


def x(at):
    return LEFT + WIDTH * at / LAST


def y(share):
    return TOP + HEIGHT * (1 - share)


def groups(report):
    return {"all": report["overall"], **report["depths"]}


def draw(reports):
    auto, capped = reports["auto"], [reports[str(b)] for b in BUDGETS] + [reports["no cap"]]
    right, bottom = LEFT + WIDTH, TOP + HEIGHT
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 90} {bottom + 46}" role="img">',
        f"<title>Accuracy of the bundled model against its thinking budget</title><style>{STYLE}</style>",
    ]
    for tenth in range(0, 11, 2):
        level = y(tenth / 10)
        svg.append(f'<path class="grid" d="M{LEFT} {level:.1f}H{right}"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{10 * tenth}%</text>')
    for at, name in enumerate([*map(str, BUDGETS), "no cap"]):
        svg.append(f'<text x="{x(at):.1f}" y="{bottom + 18}" text-anchor="middle">{name}</text>')
    under = "thinking budget in tokens; dots: auto, at the thinking that it took on average"
    svg.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 38}" text-anchor="middle">{under}</text>')
    ends = sorted((y(groups(capped[-1])[line]["accuracy"]), line) for line in LINES)
    last = TOP - 14
    for line in LINES:
        points = " ".join(f"{x(at):.1f},{y(groups(r)[line]['accuracy']):.1f}" for at, r in enumerate(capped))
        svg.append(f'<polyline class="line {line}" points="{points}"/>')
        summary = groups(auto)[line]
        mean, share = summary["thinking_tokens"]["mean"], summary["accuracy"]
        svg.append(f'<circle class="line {line}{" auto" if line == "all" else ""}" r="5" cx="{x(place(mean)):.1f}" cy="{y(share):.1f}">')
        svg.append(f"<title>auto, {line}: {100 * share:.1f}% with {mean:.0f} tokens</title></circle>")
    for level, line in ends:  # names beside the ends of their lines, never one over another
        last = max(level, last + 14)
        svg.append(f'<text x="{right + 8}" y="{last + 4:.1f}">{line}</text>')
        svg.append(f'<path class="line {line}" d="M{right + 56} {last:.1f}h18"/>')
    OUT.write_text("\n".join([*svg, "</svg>\n"]))


def table(reports):
    print("| budget | " + " | ".join(LINES) + " | thinking tokens, mean |\n|" + "---|" * (len(LINES) + 2))
    for name, report in reports.items():
        shares = " | ".join(f"{100 * groups(report)[line]['accuracy']:.1f}%" for line in LINES)
        print(f"| {name} | {shares} | {report['overall']['thinking_tokens']['mean']:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/ponder")
    parser.add_argument("--data", default="examples/data/heldout.jsonl")
    parser.add_argument("--from", dest="measured", type=Path)
    args = parser.parse_args()
    text = args.measured.read_text() if args.measured else measure(args.program, args.data)
    reports = {r["name"]: r for r in json.loads(text)["configurations"]}
    draw(reports)
    table(reports)


if __name__ == "__main__":
    main()
