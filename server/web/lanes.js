// The batch as lanes: one per answer, coloured by what it did when. Live, a lane is drawn from the views and made
// exact by its recorded life when it appears and when it ends; from a trace, it is exact from the start.

import { h, s, say } from "./dom.js";
import { count, ms, percent, word } from "./text.js";

const SHOWN = 24;
// Lanes that ended and are still shown; the span of time, in milliseconds, that is drawn: the shortest of these that
// holds the oldest answer in flight.
const ENDED = 6;
const WINDOWS = [5000, 15000, 30000, 60000, 120000, 300000];

export const swatch = phase => h("span", { class: `swatch ${phase}`, "aria-hidden": "true" });

// The stretches of a life as a strip of time from `from` to `to`.
export function strip(svg, stretches, from, to) {
  const scale = 1000 / Math.max(1, to - from);
  const rects = [];
  for (const { phase, from_ms, until_ms } of stretches) {
    const begin = Math.max(from, from_ms), end = Math.min(to, until_ms ?? to);
    if (end <= from || begin > to) continue;
    // What is short is still to be seen.
    rects.push(s("rect", { class: phase, x: (begin - from) * scale, width: Math.max(1.5, (end - begin) * scale), height: 20 }));
  }
  svg.replaceChildren(...rects);
}
export const stripSvg = () => s("svg", { viewBox: "0 0 1000 20", preserveAspectRatio: "none", "aria-hidden": "true" });

// What is known of the answers in flight and of those that just ended.
export class LiveLanes {
  lanes = new Map();
  wanted = [];
  asking = 0;
  window = WINDOWS[0];

  // `life(request, choice)` asks the server.
  constructor(life) {
    this.life = life;
  }
  clear() {
    this.lanes.clear();
  }
  push(view) {
    const oldest = Math.max(0, ...view.lanes.map(seq => seq.age_ms));
    this.window = WINDOWS.find(window => oldest < 0.9 * window) ?? WINDOWS.at(-1);
    const seen = new Set();
    for (const seq of view.lanes) {
      const key = `${seq.request}.${seq.choice}`;
      seen.add(key);
      let lane = this.lanes.get(key);
      if (!lane) this.lanes.set(key, (lane = { key, request: seq.request, choice: seq.choice, stretches: [] }));
      Object.assign(lane, { seq, phase: seq.lane });
      const last = lane.stretches.at(-1);
      if (!last) {
        lane.stretches.push({ phase: seq.lane, from_ms: view.now_ms, until_ms: null });
        this.refine(lane);
      } else if (last.phase !== seq.lane) {
        last.until_ms = view.now_ms;
        lane.stretches.push({ phase: seq.lane, from_ms: view.now_ms, until_ms: null });
      }
    }
    for (const [key, lane] of this.lanes) {
      if (!seen.has(key) && !lane.over) {
        lane.over = true;
        lane.stretches.at(-1).until_ms ??= view.now_ms;
        this.refine(lane);
      }
      if (lane.over && lane.stretches.at(-1).until_ms < view.now_ms - this.window) this.lanes.delete(key);
    }
  }
  // A few questions at a time, the latest lane first; where there are too many, what the views told stands.
  async refine(lane) {
    this.wanted.push(lane);
    if (this.wanted.length > 32) this.wanted.shift();
    if (this.asking >= 3) return;
    this.asking += 1;
    for (let next; (next = this.wanted.pop());) {
      try {
        const life = await this.life(next.request, next.choice);
        if (life.stretches.length > 0 && (life.ended != null || !next.over)) next.stretches = life.stretches;
        next.ended = life.ended;
      } catch {
        // It is among the last that ended no more.
      }
    }
    this.asking -= 1;
  }
  list() {
    const all = [...this.lanes.values()];
    const ended = all.filter(lane => lane.over).sort((a, b) => b.stretches.at(-1).until_ms - a.stretches.at(-1).until_ms);
    return [...all.filter(lane => !lane.over), ...ended.slice(0, ENDED)];
  }
}

function figures({ seq, ended, over }) {
  if (over && ended) return `${count(ended.output_tokens)} tokens, ${ended.why}`;
  if (!seq) return "";
  const { reasoning, content, tool_call } = seq.counts;
  const cap = seq.thinking_budget == null ? "" : `/${count(seq.thinking_budget)}`;
  const right = seq.drafted_tokens > 0 ? ` · ${percent(seq.accepted_tokens / seq.drafted_tokens)}` : "";
  return `${count(reasoning)}${cap} + ${count(content + tool_call)}${right}`;
}

// The rows.
export class LaneRows {
  rows = new Map();

  constructor(parent, open) {
    this.open = open;
    this.list = h("div");
    this.from = h("span");
    this.to = h("span");
    this.figures = h("span", { class: "quiet" });
    this.axis = h("div", { class: "axis", "aria-hidden": "true" }, this.from, this.to);
    this.none = h("p", { class: "none" });
    this.more = h("p", { class: "more-lanes" });
    parent.append(this.list, this.axis, this.none, this.more);
  }

  // `lanes` from `from` to `to` milliseconds; `none` is said where there are none.
  draw(lanes, from, to, none, live) {
    const shown = lanes.slice(0, SHOWN);
    for (const lane of shown) {
      const row = this.row(lane);
      const phase = lane.over ? "ended" : lane.phase;
      row.button.classList.toggle("over", Boolean(lane.over && live));
      row.mark.setAttribute("class", `swatch ${lane.over ? "" : phase}`);
      say(row.doing, word(phase ?? ""));
      say(row.figures, lane.figures ?? figures(lane));
      strip(row.svg, lane.stretches, from, to);
      row.lane = lane;
    }
    const keys = new Set(shown.map(lane => lane.key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.button.remove();
        this.rows.delete(key);
      }
    }
    // Only what moved is moved, and the focus stays where it was.
    const focus = document.activeElement;
    shown.forEach((lane, i) => {
      const { button } = this.rows.get(lane.key);
      if (this.list.children[i] !== button) this.list.insertBefore(button, this.list.children[i] ?? null);
    });
    if (focus !== document.activeElement && focus.isConnected && this.list.contains(focus)) focus.focus({ preventScroll: true });
    this.axis.hidden = shown.length === 0;
    say(this.from, live ? `${Math.round((from - to) / 1000)} s` : "0");
    say(this.to, live ? "now" : ms(to - from));
    this.none.hidden = shown.length > 0;
    say(this.none, none);
    this.more.hidden = lanes.length <= shown.length;
    say(this.more, `and ${count(lanes.length - shown.length)} more`);
  }

  row(lane) {
    let row = this.rows.get(lane.key);
    if (row) return row;
    row = { svg: stripSvg(), mark: swatch(""), doing: h("span"), figures: h("span", { class: "figures" }), lane };
    const who = lane.label ?? `#${lane.request}${lane.choice ? `, answer ${lane.choice + 1}` : ""}`;
    row.button = h("button", { type: "button", class: "lane", title: "Its life", onclick: () => this.open(row.lane) },
      h("span", { class: "who" }, who), h("span", { class: "doing" }, row.mark, row.doing), h("span", { class: "line" }, row.svg), row.figures);
    this.rows.set(lane.key, row);
    return row;
  }
}
