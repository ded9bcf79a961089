// The conversation: what is asked, how it is streamed, and how it is steered while it runs.

import { events, post } from "./api.js";
import { $, h, say } from "./dom.js";
import { count } from "./text.js";
import { Turn } from "./turn.js";

// Positions of the slider; the last one sends no budget.
const BUDGETS = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, null];
const EXAMPLES = ["What is 15% of 80?", "A train leaves at 14:35 and takes 2 h 50 min. When does it arrive?", "Is 91 a prime number?"];

const messages = [];
let running = null;
let hooks = { model: () => "", life: () => {}, look: async () => [] };

const budget = () => BUDGETS[Number($("budget").value)];

function showBudget() {
  const b = budget();
  const text = b == null ? "not set" : b === 0 ? "no thinking" : `at most ${count(b)}`;
  say($("budget-says"), text);
  $("budget").setAttribute("aria-valuetext", text);
}

// The request as the server takes it; an error here is one of the fields on this page.
function body() {
  const asked = { model: hooks.model(), stream: true, stream_options: { include_usage: true } };
  const system = $("system").value.trim();
  asked.messages = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  if ($("effort").value) asked.reasoning_effort = $("effort").value;
  if (budget() != null) asked.thinking_token_budget = budget();
  for (const [id, field] of [["max-tokens", "max_completion_tokens"], ["temperature", "temperature"], ["seed", "seed"]]) {
    const text = $(id).value.trim();
    // What is no number is sent as it is: the server says what is wrong with it.
    if (text) asked[field] = Number.isFinite(Number(text)) ? Number(text) : text;
  }
  return asked;
}

function welcome() {
  const ask = text => () => { $("prompt").value = text; $("prompt").focus(); };
  const examples = EXAMPLES.map(text => h("li", null, h("button", { type: "button", onclick: ask(text) }, text)));
  $("turns").replaceChildren(h("div", { class: "empty" }, h("p", null, "Watch it think. Cap the thinking, or ask for the answer while it runs."), h("ul", null, examples)));
}

function follow(write) {
  const log = $("turns");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  write();
  if (follows) log.scrollTop = log.scrollHeight;
}

function refresh() {
  $("send").disabled = running != null;
  $("stop").hidden = running == null;
  $("clear").disabled = running != null;
  $("answer-now").disabled = !running?.turn.isThinking || !running.id || running.asked;
  say($("running"), running == null ? "" : running.turn.isThinking ? "thinking" : running.turn.answer ? "answering" : "waiting");
}

async function send(event) {
  event?.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  if (messages.length === 0) $("turns").replaceChildren();
  messages.push({ role: "user", content: text });
  const question = h("div", { class: "asked" }, text);
  $("turns").append(question);
  $("prompt").value = "";
  grow();
  const turn = new Turn($("turns"), budget() ?? Infinity, hooks.life);
  const mine = (running = { turn, abort: new AbortController(), id: null, request: null, asked: false });
  refresh();
  $("turns").scrollTop = $("turns").scrollHeight;
  let last = {}, usage = null;
  try {
    for await (const chunk of events("POST", "/v1/chat/completions", body(), mine.abort.signal, true)) {
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), { status: "", code: chunk.error.code });
      if (mine.id == null) {
        mine.id = chunk.id;
        // A short answer may be over before the next view.
        hooks.look().then(all => lanes(all), () => {});
      }
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices;
      if (!choice) continue;
      follow(() => {
        const thought = choice.delta.reasoning_content ?? choice.delta.reasoning;
        if (thought) turn.think(thought);
        if (choice.delta.content) turn.say(choice.delta.content);
        if (choice.finish_reason) last = { reason: choice.finish_reason, timings: chunk.timings };
      });
      refresh();
    }
    messages.push({ role: "assistant", content: turn.answer });
    follow(() => turn.done({ ...last, usage, request: mine.request }));
  } catch (error) {
    if (mine.abort.signal.aborted) {
      messages.push({ role: "assistant", content: turn.answer });
      turn.done({ reason: "stopped", request: mine.request });
    } else {
      // The question is not part of the conversation: it can be mended and sent again.
      messages.pop();
      follow(() => turn.failed(error));
      $("prompt").value ||= text;
    }
  } finally {
    running = null;
    refresh();
  }
}

async function answerNow() {
  if (!running?.id) return;
  const mine = running;
  mine.asked = true;
  refresh();
  try {
    await post("/v1/chat/completions/control", { id: mine.id, action: "end_thinking" });
  } catch (error) {
    mine.asked = false;
    follow(() => $("turns").append(h("p", { class: "error", role: "alert" }, h("b", null, String(error.status ?? "")), error.message)));
  }
}

function grow() {
  const prompt = $("prompt");
  prompt.rows = Math.min(10, Math.max(2, prompt.value.split("\n").length));
}

// What the engine says of the running request: exact counts, and the number by which its life is looked up.
export function lanes(all) {
  const lane = running?.id && all.find(lane => lane.id === running.id);
  if (!lane) return;
  running.request = lane.request;
  if (running.turn.isThinking && lane.counts.reasoning > 0) running.turn.counts(lane.counts.reasoning, true);
}

export function start(with_) {
  hooks = with_;
  $("composer").addEventListener("submit", send);
  $("prompt").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  $("prompt").addEventListener("input", grow);
  $("budget").addEventListener("input", showBudget);
  $("answer-now").addEventListener("click", answerNow);
  $("stop").addEventListener("click", () => running?.abort.abort());
  $("clear").addEventListener("click", () => {
    messages.length = 0;
    welcome();
    $("prompt").focus();
  });
  showBudget();
  welcome();
  refresh();
}
