// Rates out of counts: the server tells what happened since its start, a watcher takes differences.

const WINDOW = 120;
const STAR = ["scheduler", "kv", "draft", "target"];

// What happened between two views, per second and per step. What did not happen has no rate: NaN, or null in plots.
export function between(a, b) {
  const seconds = (b.now_ms - a.now_ms) / 1000;
  const total = name => b.totals[name] - a.totals[name];
  const steps = b.step - a.step;
  const sum = (view, field) => view.guesses.reduce((n, g) => n + g[field], 0);
  const guessed = field => sum(b, field) - sum(a, field);
  const spent = view => view.actors.filter(x => STAR.includes(x.actor)).reduce((n, x) => n + x.busy_us + x.queue_us, 0);
  const tokens = total("thinking_tokens") + total("answer_tokens");
  const writing = b.lanes.filter(l => ["thinking", "answer", "tool_call"].includes(l.lane)).length;
  return {
    seconds, steps,
    thinking: total("thinking_tokens") / seconds,
    answer: total("answer_tokens") / seconds,
    prefill: total("prefill_tokens") / seconds,
    perStep: steps > 0 ? (spent(b) - spent(a)) / steps / 1000 : NaN,
    device: steps > 0 ? (b.device_us - a.device_us) / steps / 1000 : NaN,
    perToken: tokens > 0 && writing > 0 ? (seconds * 1000 * writing) / tokens : NaN,
    right: guessed("accepted") / guessed("drafted"),
    length: guessed("steps") > 0 ? guessed("drafted") / guessed("steps") : NaN,
    actors: Object.fromEntries(b.actors.map((actor, i) => [actor.actor, actorBetween(a.actors[i], actor, seconds, b.queue_us)])),
  };
}

function actorBetween(a, b, seconds, bounds) {
  const messages = b.messages - a.messages;
  return {
    rate: messages / seconds,
    queue: messages > 0 ? (b.queue_us - a.queue_us) / messages / 1000 : NaN,
    most: bound(b.queued.map((n, i) => n - a.queued[i]), bounds, 0.99),
    busy: (b.busy_us - a.busy_us) / 1e6 / seconds,
  };
}

// The bound, in milliseconds, under which this share of a histogram lies.
export function bound(counts, bounds, share) {
  const all = counts.reduce((a, b) => a + b, 0);
  if (all === 0) return NaN;
  let below = 0;
  for (let i = 0; i < bounds.length; i++) if ((below += counts[i]) >= share * all) return bounds[i] / 1000;
  return Infinity;
}

// The last two minutes: one point per half second for plots, and a steadier look at the last second for figures.
export class History {
  points = [];
  recent = [];

  // Takes a view; returns the rates of about the last second, once there are any.
  push(view) {
    const last = this.recent.at(-1);
    if (last && (view.now_ms < last.now_ms || view.step < last.step)) this.clear();
    this.recent.push(view);
    while (this.recent.length > 2 && view.now_ms - this.recent[1].now_ms >= 1000) this.recent.shift();
    const since = this.plotted ?? view;
    if (view.now_ms - since.now_ms >= 500) {
      this.points.push({ at: view.now_ms / 1000, ...between(since, view) });
      while (this.points[0].at < view.now_ms / 1000 - WINDOW) this.points.shift();
      this.plotted = view;
    }
    this.plotted ??= view;
    return this.recent.length > 1 && view.now_ms > this.recent[0].now_ms ? between(this.recent[0], view) : null;
  }
  clear() {
    this.points.length = this.recent.length = 0;
    this.plotted = null;
  }
  // Columns for a plot: seconds before now, then the named rates.
  columns(now, ...names) {
    const value = n => (Number.isFinite(n) ? n : null);
    return [this.points.map(p => p.at - now), ...names.map(name => this.points.map(p => value(p[name])))];
  }
}
