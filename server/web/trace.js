// A recorded trace file (`ponder … --trace`, or POST /debug/trace), read for the same drawings as the live engine.
// Nothing in it is believed: what is no event of ours is passed over, and what a trace does not hold stays absent.

import { PHASES } from "./text.js";
import { bound } from "./rates.js";

const BOUNDS = [10, 30, 100, 300, 1000, 3000, 10000, 100000];
const number = x => (typeof x === "number" && Number.isFinite(x) ? x : null);

export class NoTrace extends Error {}

// The trace of a file's text, times in milliseconds after its first event.
export function read(text) {
  let json;
  try {
    json = JSON.parse(text);
  } catch {
    throw new NoTrace("this file is no JSON");
  }
  const all = Array.isArray(json) ? json : json?.traceEvents;
  if (!Array.isArray(all)) throw new NoTrace("this file has no traceEvents: it is no trace");
  const events = all.filter(e => e && typeof e.name === "string" && typeof e.tid === "string" && number(e.ts) != null && (e.pid === "actors" || e.pid === "requests"));
  if (events.length === 0) throw new NoTrace("there is no event of Ponder's in this trace");
  const begin = events.reduce((t, e) => Math.min(t, e.ts), Infinity);
  const end = events.reduce((t, e) => Math.max(t, e.ts + (number(e.dur) ?? 0)), begin);
  const at = us => (us - begin) / 1000;
  const messages = events.filter(e => e.pid === "actors" && number(e.dur) != null);
  return {
    to: at(end), messages: messages.length, steps: new Set(messages.map(e => e.args?.step).filter(step => step > 0)).size,
    lanes: lanes(events.filter(e => e.pid === "requests"), at), actors: actors(messages, (end - begin) / 1e6), spans: track => spans(messages, track),
    verify: messages.filter(e => e.name === "Verify").map(e => e.dur / 1000),
  };
}

// A short name of an answer's track; another version's or another program's stays as it is.
function label(track) {
  const parts = /^request (\d+) answer (\d+)$/.exec(track);
  return parts == null ? track.slice(0, 60) : `#${parts[1]}${parts[2] === "0" ? "" : `, answer ${Number(parts[2]) + 1}`}`;
}

function lanes(events, at) {
  const tracks = new Map();
  for (const e of events) {
    if (!tracks.has(e.tid)) tracks.set(e.tid, { key: e.tid, label: label(e.tid), stretches: [], figures: "" });
    const lane = tracks.get(e.tid);
    if (e.ph === "i" && e.name === "done") {
      Object.assign(lane, { ended: e.args?.ended ?? null, decision: e.args?.decision ?? null, recorded: e.args?.stretches });
      if (lane.ended) lane.figures = `${lane.ended.output_tokens} tokens, ${lane.ended.why}`;
    } else if (number(e.dur) != null) {
      const phase = e.name === "decode" ? "answer" : e.name;
      if (PHASES.includes(phase)) lane.stretches.push({ phase, from_ms: at(e.ts), until_ms: at(e.ts + e.dur) });
    }
  }
  const begun = lane => lane.stretches[0]?.from_ms ?? Infinity;
  for (const lane of tracks.values()) {
    lane.stretches.sort((a, b) => a.from_ms - b.from_ms);
    lane.phase = lane.stretches.at(-1)?.phase ?? "queued";
    lane.over = lane.ended != null;
  }
  return [...tracks.values()].sort((a, b) => begun(a) - begun(b));
}

function actors(messages, seconds) {
  const by = {};
  for (const e of messages) {
    const a = (by[e.tid] ??= { n: 0, queue: 0, busy: 0, counts: new Array(BOUNDS.length + 1).fill(0) });
    const queue = number(e.args?.queue_us) ?? 0;
    a.n += 1;
    a.queue += queue;
    a.busy += e.dur;
    const i = BOUNDS.findIndex(b => queue <= b);
    a.counts[i < 0 ? BOUNDS.length : i] += 1;
  }
  const rates = a => ({ rate: a.n / seconds, queue: a.queue / a.n / 1000, most: bound(a.counts, BOUNDS, 0.99), busy: a.busy / 1e6 / seconds });
  return Object.fromEntries(Object.entries(by).map(([name, a]) => [name, rates(a)]));
}

// The messages of the steps that an answer took part in, by name; a trace of an older version does not say whose
// steps were whose.
function spans(messages, track) {
  const steps = new Set(messages.filter(e => Array.isArray(e.args?.answers) && e.args.answers.includes(track)).map(e => e.args.step));
  const by = new Map();
  for (const e of messages) {
    if (!steps.has(e.args?.step)) continue;
    const name = `${e.tid}.${e.name}`;
    const span = by.get(name) ?? { name, count: 0, busy: 0, queue: 0 };
    span.count += 1;
    span.busy += e.dur / 1000;
    span.queue += (number(e.args?.queue_us) ?? 0) / 1000;
    by.set(name, span);
  }
  return [...by.values()];
}
