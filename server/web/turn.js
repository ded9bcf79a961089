// One answer while it comes: the thinking in its foldable panel, the answer, and what it took.

import { h, s, say } from "./dom.js";
import { count, ms, percent, plural, rate } from "./text.js";

const CLOSED = {
  budget: "the budget ended it", reserve: "room was kept for the answer", loop: "it went round in a circle",
  asked: "you asked for the answer", end_token: "it ended its turn", tool_call: "a tool call began",
};

export class Turn {
  thinking = "";
  answer = "";
  tokens = 0;

  constructor(parent, budget, showLife) {
    Object.assign(this, { budget, showLife, begun: performance.now() });
    this.thought = h("div", { class: "thought", tabindex: "0", role: "region", "aria-label": "Thinking", "aria-live": "off" });
    this.counter = h("span", { class: "count" });
    this.why = h("span", { class: "why" });
    this.bar = s("rect", { width: 0, height: 3 });
    this.meter = h("div", { class: "meter", hidden: true }, s("svg", { viewBox: "0 0 100 3", preserveAspectRatio: "none", "aria-hidden": "true" }, this.bar));
    this.panel = h("details", { class: "think live", open: true, hidden: true },
      h("summary", null, h("b", null, "Thinking"), this.counter, this.why), this.meter, this.thought);
    this.said = h("div", { class: "answer" });
    this.meta = h("div", { class: "meta" });
    this.element = h("article", { "aria-label": "Answer", "aria-busy": "true" }, this.panel, this.said, this.meta);
    parent.append(this.element);
  }

  get isThinking() {
    return !this.over && this.answer === "" && !this.panel.hidden;
  }

  // New text. A scrolled-up panel stays where it is.
  think(text) {
    this.panel.hidden = false;
    this.thinking += text;
    this.tokens += 1;
    const follows = this.thought.scrollHeight - this.thought.scrollTop - this.thought.clientHeight < 24;
    this.thought.append(this.thought.firstChild ? text : text.trimStart());
    if (follows) this.thought.scrollTop = this.thought.scrollHeight;
    this.counts(this.tokens);
  }
  say(text) {
    if (this.answer === "" && this.thinking) this.fold();
    this.answer += text;
    this.said.append(this.said.firstChild ? text : text.trimStart());
  }

  // The engine's own count where the page knows it; until then pieces of text, which are a token or so each.
  counts(tokens, exact) {
    const cap = Number.isFinite(this.budget) ? ` of ${count(this.budget)}` : "";
    const about = exact || this.exact ? "" : "about ";
    this.exact ||= exact;
    this.tokens = Math.max(this.tokens, tokens);
    if (this.panel.classList.contains("live")) this.seconds = (performance.now() - this.begun) / 1000;
    say(this.counter, `${about}${count(this.tokens)}${cap} ${this.tokens === 1 ? "token" : "tokens"} · ${this.seconds.toFixed(1)} s`);
    const capped = this.budget > 0 && Number.isFinite(this.budget);
    this.meter.hidden = !capped;
    if (capped) this.bar.setAttribute("width", Math.min(100, (100 * this.tokens) / this.budget));
  }

  fold() {
    this.panel.classList.remove("live");
    if (!this.panel.matches(":focus-within")) this.panel.open = false;
  }

  // The end: `timings` and `usage` as the server gave them.
  done({ reason, timings, usage, request }) {
    this.over = true;
    this.element.removeAttribute("aria-busy");
    this.panel.classList.remove("live");
    const thought = usage?.completion_tokens_details?.reasoning_tokens ?? timings?.thinking?.counts?.reasoning;
    if (thought != null && !this.panel.hidden) this.counts(thought, true);
    say(this.why, CLOSED[timings?.thinking?.closed_by] ?? "");
    if (!this.answer && reason !== "stopped") this.said.append(h("span", { class: "quiet" }, "(no answer)"));
    const facts = [];
    if (usage) facts.push(plural(usage.completion_tokens, "token"));
    if (timings) {
      facts.push(`${rate(timings.predicted_per_second)} tokens/s`, `first after ${ms(timings.ttft_ms)}`);
      if (timings.ttfa_ms != null && this.thinking) facts.push(`answer after ${ms(timings.ttfa_ms)}`);
      if (timings.draft_n > 0) facts.push(`${percent(timings.draft_n_accepted / timings.draft_n)} of ${count(timings.draft_n)} guesses right`);
    }
    if (reason && reason !== "stop") facts.push({ length: "cut at its length", stopped: "stopped", tool_calls: "calls a tool" }[reason] ?? reason);
    this.meta.replaceChildren(...facts.map(fact => h("span", null, fact)));
    if (request != null) this.meta.append(h("button", { type: "button", class: "plain", onclick: () => this.showLife(request) }, "Its life"));
  }

  failed(error) {
    this.over = true;
    this.element.removeAttribute("aria-busy");
    this.panel.classList.remove("live");
    const head = error.status ? `${error.status}${error.code ? ` ${error.code}` : ""}` : "Broken off";
    this.element.append(h("p", { class: "error", role: "alert" }, h("b", null, head), error.message));
  }
}
