// The actors as a graph: the step loop asks each in turn; beside every way stand its messages per second, in every
// actor how long a message waited and how busy it was.

import { s, say } from "./dom.js";
import { ms, percent, rate } from "./text.js";

const WIDTH = 452, HEIGHT = 284, W = 132, H = 78;
const HUB = { x: 226, y: 142, w: 112, h: 44 };
// In the order in which a step asks them, clockwise; then those beside it.
const PLACES = {
  scheduler: [67, 40], kv: [67, 244], draft: [385, 40], target: [385, 244], streamer: [226, 244], supervisor: [226, 40],
};
const DOES = {
  scheduler: "who runs", kv: "where it lives", draft: "what we guess", target: "what is true",
  streamer: "tells the clients", supervisor: "replaces devices",
};

export class Actors {
  nodes = {};

  constructor(parent) {
    parent.classList.add("actors");
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Actors" });
    const edges = s("g"), boxes = s("g");
    for (const [name, [x, y]] of Object.entries(PLACES)) {
      const edge = s("line", { class: "edge", x1: HUB.x, y1: HUB.y, x2: x, y2: y, "stroke-width": 1 });
      const [mx, my] = edgeMiddle(x, y);
      const label = s("text", { class: "rate", x: mx, y: my + 4, "text-anchor": "middle" });
      const load = s("rect", { class: "load", x: x - W / 2, y: y - H / 2, width: 0, height: H, rx: 6 });
      const text = (dy, kind) => s("text", { class: kind, x: x - W / 2 + 10, y: y + dy });
      const lines = [text(-20, "name"), text(-2, "figure"), text(13, "figure"), text(28, "figure")];
      say(lines[0], name);
      boxes.append(s("g", { class: "node" }, s("title", null, DOES[name]), s("rect", { x: x - W / 2, y: y - H / 2, width: W, height: H, rx: 6 }), load, ...lines));
      edges.append(edge);
      boxes.append(label);
      this.nodes[name] = { edge, label, load, lines };
    }
    this.steps = s("text", { class: "figure", x: HUB.x, y: HUB.y + 14, "text-anchor": "middle" });
    const hub = s("g", { class: "node hub" },
      s("rect", { x: HUB.x - HUB.w / 2, y: HUB.y - HUB.h / 2, width: HUB.w, height: HUB.h, rx: 23 }),
      s("text", { class: "name", x: HUB.x, y: HUB.y - 3, "text-anchor": "middle" }, "step loop"), this.steps);
    this.svg.append(edges, hub, boxes);
    parent.append(this.svg);
  }

  // `rates`: by actor; `steps`: steps per second.
  draw(rates, steps) {
    say(this.steps, `${rate(steps)} steps/s`);
    const told = [];
    for (const [name, { edge, label, load, lines }] of Object.entries(this.nodes)) {
      const now = rates[name] ?? { rate: NaN };
      edge.setAttribute("stroke-width", now.rate > 0 ? 1 + Math.min(5, Math.log10(1 + now.rate) * 1.6) : 1);
      edge.setAttribute("opacity", now.rate > 0 ? 0.75 : 0.3);
      say(label, now.rate > 0 ? `${rate(now.rate)}/s` : "");
      load.setAttribute("width", W * Math.min(1, now.busy || 0));
      const idle = !(now.rate > 0);
      say(lines[1], idle ? "no messages" : `busy ${percent(now.busy)}`);
      say(lines[2], idle ? "" : `queue ${ms(now.queue)}`);
      say(lines[3], idle ? "" : `99% ${most(now.most)}`);
      if (!idle) told.push(`${name} ${rate(now.rate)} messages a second, ${ms(now.queue)} in the queue, ${percent(now.busy)} busy`);
    }
    this.svg.setAttribute("aria-label", told.length ? `Actors: ${told.join("; ")}` : "Actors: nothing to do");
  }
}

const most = bound => (bound === Infinity ? "> 100 ms" : `≤ ${ms(bound)}`);

// Where a rate stands: on the visible part of the way, nearer to the actor.
function edgeMiddle(x, y) {
  const t = x === HUB.x ? 0.43 : 0.5;
  return [HUB.x + (x - HUB.x) * t + (x === HUB.x ? 22 : 0), HUB.y + (y - HUB.y) * t];
}
