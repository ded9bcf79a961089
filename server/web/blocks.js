// The KV pool as a map of its blocks, coloured by what their holders do; what several hold is hatched.

import { colour, h, say } from "./dom.js";
import { count, percent, word } from "./text.js";
import { swatch } from "./lanes.js";

const HEIGHT = 168;

export class Blocks {
  constructor(parent) {
    parent.classList.add("blocks");
    this.said = h("p");
    this.canvas = h("canvas", { role: "img", "aria-label": "Map of the KV blocks", height: HEIGHT });
    this.legend = h("ul", { class: "legend" });
    parent.append(this.said, this.canvas, this.legend);
  }

  absent(why) {
    say(this.said, why);
    this.canvas.hidden = this.legend.hidden = true;
  }

  draw(kv) {
    this.canvas.hidden = this.legend.hidden = false;
    const held = kv.total - kv.free;
    const each = kv.per_cell > 1 ? `, ${kv.per_cell} blocks a cell` : "";
    const text = `${count(held)}/${count(kv.total)} held (${percent(held / Math.max(1, kv.total))}), ${kv.block_size} tokens each${each}`;
    say(this.said, text);
    this.canvas.setAttribute("aria-label", `Map of the KV blocks: ${text}`);
    const cells = kv.runs.reduce((n, run) => n + run[2], 0);
    this.paint(kv, cells);
    this.explain(kv);
  }

  paint(kv, cells) {
    const scale = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth || 300;
    // The largest square cell with which all fit.
    let size = 15;
    while (size > 2 && Math.ceil(cells / Math.floor(width / size)) * size > HEIGHT) size -= 1;
    const columns = Math.max(1, Math.floor(width / size));
    const height = Math.max(size, Math.ceil(cells / columns) * size);
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const gap = size > 5 ? 1.5 : size > 3 ? 1 : 0.5;
    const colours = kv.kinds.map(colour), paper = colour("card");
    let at = 0;
    for (const [kind, shared, run] of kv.runs) {
      for (let i = 0; i < run; i++, at++) {
        const x = (at % columns) * size, y = Math.floor(at / columns) * size;
        pen.fillStyle = colours[kind];
        pen.fillRect(x, y, size - gap, size - gap);
        if (shared) {
          pen.strokeStyle = paper;
          pen.lineWidth = Math.max(1, size / 7);
          pen.beginPath();
          pen.moveTo(x, y + size - gap);
          pen.lineTo(x + size - gap, y);
          pen.stroke();
        }
      }
    }
  }

  explain(kv) {
    const cells = new Array(kv.kinds.length).fill(0);
    let shared = 0;
    for (const [kind, several, run] of kv.runs) {
      cells[kind] += run;
      if (several) shared += run;
    }
    const entries = kv.kinds.map((kind, i) => [kind, cells[i]]).filter(([kind, n]) => n > 0 || kind === "free");
    if (shared > 0) entries.push(["shared", shared]);
    const text = entries.map(([kind, n]) => `${kind} ${n}`).join();
    if (text === this.explained) return;
    this.explained = text;
    this.legend.replaceChildren(...entries.map(([kind, n]) => h("li", null, swatch(kind), `${word(kind)} ${count(n * kv.per_cell)}`)));
  }
}
