// Numbers as people read them, and the words for phases.

export const PHASES = ["queued", "preempted", "prefill", "thinking", "answer", "tool_call"];

export const word = phase => phase.replace("_", " ");

export function count(n) {
  if (!Number.isFinite(n)) return "–";
  if (Math.abs(n) >= 1e6) return `${(n / 1e6).toFixed(n >= 1e7 ? 0 : 1)}M`;
  if (Math.abs(n) >= 1e4) return `${(n / 1e3).toFixed(n >= 1e5 ? 0 : 1)}k`;
  return Math.round(n).toLocaleString("en");
}

// A rate: short, with a digit behind the point where it is small.
export function rate(n) {
  if (!Number.isFinite(n)) return "–";
  return n > 0 && n < 10 ? n.toFixed(1) : count(n);
}

export function ms(n) {
  if (!Number.isFinite(n)) return "–";
  if (n > 0 && n < 0.1) return `${Math.round(n * 1000)} µs`;
  if (n < 10) return `${Number(n.toFixed(2))} ms`;
  if (n < 1000) return `${Math.round(n)} ms`;
  return n < 60000 ? `${(n / 1000).toFixed(1)} s` : `${Math.floor(n / 60000)} min ${Math.round((n % 60000) / 1000)} s`;
}

export const percent = share => (Number.isFinite(share) ? `${Math.round(share * 100)}%` : "–");

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
