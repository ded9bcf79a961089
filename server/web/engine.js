// The engine's side of the page: live from the server's views, or from a trace file, in the same drawings.

import { events, get, post } from "./api.js";
import { $, h, say } from "./dom.js";
import { count, ms, percent, PHASES, plural, rate, word } from "./text.js";
import { Actors } from "./actors.js";
import { Blocks } from "./blocks.js";
import { LaneRows, LiveLanes, swatch } from "./lanes.js";
import { open as openLife } from "./life.js";
import { Plots } from "./plots.js";
import { History } from "./rates.js";
import { NoTrace, read } from "./trace.js";

const VITALS = ["Thinking", "Answer", "Step", "Running", "KV held", "Guesses right"];
const INTERVAL = 250;

let actors, blocks, rows, plots, vitals, lanes, hooks;
let history = new History();
let last = null, trace = null, stream = null;

function vital(name, value, unit) {
  vitals[name].replaceChildren(value, ...(unit ? [h("small", null, unit)] : []));
}

function complain(error) {
  $("engine-said").hidden = error == null;
  say($("engine-said"), error == null ? "" : error.message);
}

const query = () => `model=${encodeURIComponent(hooks.model())}`;

// A life as the server has it.
export async function life(request, choice = 0) {
  const life = await get(`/debug/life?${query()}&request=${request}&choice=${choice}`);
  const title = `Request ${request}${choice ? `, answer ${choice + 1}` : ""}`;
  return { ...life, title };
}
// The lanes now.
export const look = async () => (await get(`/debug/live?${query()}&once=true`)).lanes;
export const showLife = (request, choice) => openLife(() => life(request, choice));

function openLane(lane) {
  if (!trace) return showLife(lane.request, lane.choice);
  const spans = trace.spans(lane.key);
  const absent = [
    lane.ended ? null : "Its end is not in this trace.",
    spans.length > 0 ? null : "This trace does not say which steps were its own.",
  ].filter(Boolean).join(" ");
  // A recorded end has the counts of each stretch, for the whole life even where the recording began later.
  const stretches = Array.isArray(lane.recorded) ? lane.recorded : lane.stretches;
  return openLife(async () => ({ title: `Request ${lane.label}`, stretches, decision: lane.decision, ended: lane.ended, spans, absent }));
}

function drawLive(view, now) {
  hooks.lanes(view.lanes);
  lanes.push(view);
  if (trace) return;
  const running = view.lanes.filter(l => l.lane !== "queued" && l.lane !== "preempted").length;
  vital("Thinking", rate(now?.thinking ?? 0), "tokens/s");
  vital("Answer", rate(now?.answer ?? 0), "tokens/s");
  vital("Step", ms(now?.perStep), now?.perStep > 0 ? `${rate(now.steps / now.seconds)} a second` : "idle");
  vital("Running", count(running), `of ${view.seats}${view.lanes_total > running ? `, ${view.lanes_total - running} wait` : ""}`);
  vital("KV held", percent((view.kv.total - view.kv.free) / Math.max(1, view.kv.total)), `of ${count(view.kv.total)} blocks`);
  vital("Guesses right", percent(now?.right), now?.length > 0 ? `of ${rate(now.length)} a step` : "none");
  if (now) actors.draw(now.actors, now.steps / now.seconds);
  blocks.draw(view.kv);
  rows.draw(lanes.list(), view.now_ms - lanes.window, view.now_ms, "Nothing runs.", true);
  plots.draw(history, view.now_ms / 1000);
  say($("source"), `${view.model}, step ${count(view.step)}${view.draining ? ", shutting down" : ""}`);
}

function drawTrace(name) {
  const mean = xs => xs.reduce((a, b) => a + b, 0) / xs.length;
  const seconds = trace.to / 1000;
  for (const vitalName of VITALS) vital(vitalName, "–");
  vital("Step", ms(mean(trace.verify)), trace.verify.length > 0 ? "target" : "");
  vital("Running", count(trace.lanes.length), "recorded");
  actors.draw(trace.actors, trace.steps / seconds);
  blocks.absent("A trace does not record the block pool.");
  rows.draw(trace.lanes, 0, trace.to, "No answer took part in this trace.", false);
  say($("source"), `${name}: ${ms(trace.to)}, ${plural(trace.steps, "step")}, ${plural(trace.messages, "message")}`);
}

function openTrace(text, name) {
  try {
    trace = read(text);
  } catch (error) {
    complain(error instanceof NoTrace ? new Error(`${name}: ${error.message}`) : error);
    return;
  }
  complain(null);
  $("live").hidden = false;
  $("plots").closest("section").hidden = true;
  drawTrace(name);
}

function backToLive() {
  trace = null;
  complain(null);
  $("live").hidden = true;
  $("plots").closest("section").hidden = false;
  if (last) drawLive(last, history.push(last));
  $("record").focus();
}

async function openFile(file) {
  if (file) openTrace(await file.text(), file.name);
}

async function record() {
  const button = $("record");
  button.disabled = true;
  say(button, "Recording…");
  try {
    openTrace(JSON.stringify(await post(`/debug/trace?${query()}&seconds=5`)), "the last 5 seconds");
  } catch (error) {
    complain(error);
  } finally {
    say(button, "Record 5 s");
    button.disabled = false;
  }
}

// Watches until told otherwise; a page that nobody sees watches nothing.
export async function watch() {
  stream?.abort();
  const mine = (stream = new AbortController());
  for (let wait = 500; stream === mine && !mine.signal.aborted; wait = Math.min(5000, wait * 2)) {
    try {
      for await (const view of events("GET", `/debug/live?${query()}&interval_ms=${INTERVAL}`, undefined, mine.signal)) {
        hooks.link("on", "live");
        wait = 500;
        const now = history.push(view);
        last = view;
        drawLive(view, now);
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return hooks.link("off", "key required");
      console.debug("the view broke off:", error.message);
    }
    if (mine.signal.aborted) return;
    hooks.link("off", "not connected");
    await new Promise(again => setTimeout(again, wait));
  }
}
export function rest() {
  stream?.abort();
  stream = null;
}

// Another model: nothing of the old one is kept.
export function restart() {
  history = new History();
  lanes.clear();
  watch();
}

export function redraw() {
  plots.make();
  if (trace == null && last) drawLive(last, history.push(last));
}

export function start(with_) {
  hooks = with_;
  actors = new Actors($("actors"));
  blocks = new Blocks($("blocks"));
  rows = new LaneRows($("lanes"), openLane);
  plots = new Plots($("plots"));
  lanes = new LiveLanes(life);
  vitals = Object.fromEntries(VITALS.map(name => [name, h("dd", null, "–")]));
  $("vitals").append(...VITALS.map(name => h("div", null, h("dt", null, name), vitals[name])));
  $("legend").append(...PHASES.map(phase => h("li", null, swatch(phase), word(phase))), h("li", { class: "figures" }, "thinking/budget + answer · guesses right"));
  $("live").addEventListener("click", backToLive);
  $("record").addEventListener("click", record);
  $("file").addEventListener("change", event => {
    openFile(event.target.files[0]);
    event.target.value = "";
  });
  const dropping = on => document.body.classList.toggle("dropping", on);
  addEventListener("dragover", event => {
    event.preventDefault();
    dropping(true);
  });
  addEventListener("dragleave", event => event.relatedTarget == null && dropping(false));
  addEventListener("drop", event => {
    event.preventDefault();
    dropping(false);
    openFile(event.dataTransfer.files[0]);
  });
}
