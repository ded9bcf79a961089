// The life of one request: what it did when, what was decided for it, and what guessing brought.

import { $, h, say } from "./dom.js";
import { count, ms, percent, word } from "./text.js";
import { strip, stripSvg, swatch } from "./lanes.js";

const CLOSED = {
  model: "the model closed it", budget: "the thinking budget was used up", reserve: "room was kept for the answer",
  loop: "it went round in a circle", end_token: "the model ended its turn", tool_call: "a tool call began", asked: "the client asked for the answer",
};

const table = (caption, head, rows) => h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, h("table", null,
  h("caption", { class: "hidden" }, caption),
  h("thead", null, h("tr", null, head.map(text => h("th", { scope: "col" }, text)))),
  h("tbody", null, rows.map(cells => h("tr", null, cells.map(cell => h("td", null, cell)))))));

const facts = pairs => h("dl", { class: "facts" }, pairs.filter(([, value]) => value != null && value !== "").map(([name, value]) => [h("dt", null, name), h("dd", null, String(value))]));

function part(title, ...content) {
  return h("section", null, h("h3", null, title), ...content);
}

function stretchTable(stretches, begin) {
  const counted = stretches.some(x => x.steps != null);
  const head = ["Phase", "From", "For", ...(counted ? ["Steps", "Tokens", "Guessed", "Right"] : [])];
  const rows = stretches.map(x => [
    [swatch(x.phase), word(x.phase)], ms(x.from_ms - begin), x.until_ms == null ? "goes on" : ms(x.until_ms - x.from_ms),
    ...(counted ? [count(x.steps), count(x.chosen), x.drafted > 0 ? count(x.drafted) : "–", x.drafted > 0 ? `${count(x.accepted)} (${percent(x.accepted / x.drafted)})` : "–"] : []),
  ]);
  return table("What it did, in order", head, rows);
}

function decisionFacts(decision) {
  const p = decision.prediction;
  return facts([
    ["Effort", decision.effort],
    ["Thinks", decision.think ? "yes" : "no"],
    ["Budget", decision.budget == null ? "none" : `${count(decision.budget)} tokens`],
    ["May grow to", decision.extension ? (decision.extension.to == null ? "any length" : `${count(decision.extension.to)} tokens`) : null],
    ["Told the model", decision.hint],
    ["Depth", p ? `${p.depth} (${["trivial", "easy", "middle", "hard"].map((d, i) => `${d} ${percent(p.probabilities[i])}`).join(", ")})` : null],
    ["Because", decision.reasons?.join("; ")],
  ]);
}

function endFacts(ended) {
  return facts([
    ["Ended by", ended.why],
    ["Thinking ended", CLOSED[ended.closed_by]],
    ["Prompt", `${count(ended.prompt_tokens)} tokens${ended.cached_tokens > 0 ? `, ${count(ended.cached_tokens)} of them from the cache` : ""}`],
    ["Generated", `${count(ended.output_tokens)} tokens, ${count(ended.reasoning_tokens)} of them thinking`],
    ["Guesses", ended.drafted_tokens > 0 ? `${count(ended.accepted_tokens)} of ${count(ended.drafted_tokens)} right` : "none"],
    ["Computed again", ended.recomputed_tokens > 0 ? `${count(ended.recomputed_tokens)} tokens` : null],
    ["Waited", ms(ended.queue_ms)],
    ["Device time", ms(ended.device_ms)],
    ["Cache", `${(ended.kv_byte_seconds / 1e6).toFixed(2)} MB·s`],
  ]);
}

function nowFacts(now) {
  return facts([
    ["Doing", word(now.lane)],
    ["Prompt", `${count(now.prompt_tokens)} tokens`],
    ["Generated", `${count(now.output_tokens)} of at most ${count(now.max_tokens)} tokens`],
    ["Thinking", `${count(now.counts.reasoning)} tokens${now.thinking_budget == null ? "" : ` of at most ${count(now.thinking_budget)}`}`],
    ["Cached", `${count(now.cached_tokens)} tokens`],
    ["Guesses", now.drafted_tokens > 0 ? `${count(now.accepted_tokens)} of ${count(now.drafted_tokens)} right` : "none"],
    ["Computed again", now.recomputed_tokens > 0 ? `${count(now.recomputed_tokens)} tokens` : null],
    ["Age", ms(now.age_ms)],
  ]);
}

// Fills the body. `absent`: what this source does not hold, said as such. `spans`: messages of its steps.
function show({ title, stretches, decision, ended, now, spans, absent }) {
  say($("life-title"), title);
  const begin = stretches[0]?.from_ms ?? 0;
  const end = stretches.reduce((t, x) => Math.max(t, x.until_ms ?? (now ? begin + now.age_ms : x.from_ms)), begin);
  const svg = stripSvg();
  strip(svg, stretches, begin, end);
  const body = [];
  if (stretches.length > 0) body.push(part(`What it did, in ${ms(end - begin)}`, h("div", { class: "strip" }, svg), stretchTable(stretches, begin)));
  body.push(part("How deep it was to think", decision ? decisionFacts(decision) : h("p", { class: "none quiet" }, "Nothing was decided: the request gave no effort, or the source does not say.")));
  if (ended) body.push(part("Its end", endFacts(ended)));
  else if (now) body.push(part("Now", nowFacts(now)));
  if (spans?.length > 0) {
    const rows = spans.map(x => [x.name, count(x.count), ms(x.busy / x.count), ms(x.queue / x.count)]);
    body.push(part("Messages of its steps, as far as recorded", table("Messages of its steps", ["Message", "Times", "Took", "Queued"], rows)));
  }
  if (absent) body.push(h("p", { class: "quiet" }, absent));
  $("life-body").replaceChildren(...body);
}

let again;

// Opens it with what `look()` brings, and looks again while the request is in flight.
export async function open(look) {
  const dialog = $("life");
  clearTimeout(again);
  const fresh = async () => {
    try {
      const life = await look();
      show(life);
      if (life.now && !life.ended && dialog.open) again = setTimeout(fresh, 500);
    } catch (error) {
      $("life-body").replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
  };
  if (!dialog.open) {
    say($("life-title"), "A request's life");
    $("life-body").replaceChildren();
    dialog.showModal();
  }
  await fresh();
}

export function start() {
  $("life-close").addEventListener("click", () => $("life").close());
  $("life").addEventListener("close", () => clearTimeout(again));
  $("life").addEventListener("click", event => {
    if (event.target === $("life")) $("life").close();
  });
}
