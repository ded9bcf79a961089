// The page: its parts put together, the model, the key, the theme, and what is shown where room is short.

import { get, hasKey, onKey, useKey } from "./api.js";
import { $, h, say } from "./dom.js";
import * as chat from "./chat.js";
import * as engine from "./engine.js";
import * as life from "./life.js";
import { count } from "./text.js";

const narrow = matchMedia("(max-width: 860px)");
let models = [];

const model = () => $("model").value;

function link(state, text) {
  $("link").className = `link ${state}`;
  say($("link"), text);
}

// Theme: the system's, until one was chosen.
function theme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  engine.redraw();
}

// Chat and engine stand side by side; where there is no room, one of them does.
function show(which) {
  const shown = { chat: !$("chat").hidden, engine: !$("engine").hidden };
  if (narrow.matches) Object.assign(shown, { chat: which !== "engine", engine: which === "engine" });
  else if (which) shown[which] = !shown[which];
  if (!shown.chat && !shown.engine) shown[which === "chat" ? "engine" : "chat"] = true;
  for (const name of ["chat", "engine"]) {
    $(name).hidden = !shown[name];
    $(`show-${name}`).setAttribute("aria-pressed", String(shown[name]));
  }
  if (shown.engine) engine.redraw();
}
function fit() {
  if (narrow.matches) show("chat");
  else for (const name of ["chat", "engine"]) if ($(name).hidden) show(name);
}

function about() {
  const entry = models.find(m => m.id === model());
  say($("about"), entry ? `${entry.meta.family}, ${(entry.meta.size / 1e6).toFixed(0)} MB, context ${count(entry.max_model_len)}, ${entry.meta.device}` : "");
}

async function connect() {
  try {
    models = (await get("/v1/models")).data;
  } catch (error) {
    if (error.status !== 401) {
      link("off", "not connected");
      setTimeout(connect, 2000);
    }
    return;
  }
  $("key-form").hidden = true;
  $("model").replaceChildren(...models.map(m => h("option", { value: m.id }, m.id)));
  about();
  engine.watch();
}

function start() {
  onKey(() => {
    link("off", "key required");
    say($("key-said"), hasKey() ? "401: the server does not know this key." : "");
    if ($("key-form").hidden) {
      $("key-form").hidden = false;
      $("key").focus();
    }
    useKey(null);
  });
  $("key-form").addEventListener("submit", event => {
    event.preventDefault();
    useKey($("key").value.trim());
    $("key").value = "";
    connect();
  });
  life.start();
  engine.start({ model, link, lanes: chat.lanes });
  chat.start({ model, life: engine.showLife, look: engine.look });
  $("model").addEventListener("change", () => {
    about();
    engine.restart();
  });
  $("theme").addEventListener("click", theme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", engine.redraw);
  $("show-chat").addEventListener("click", () => show("chat"));
  $("show-engine").addEventListener("click", () => show("engine"));
  narrow.addEventListener("change", fit);
  document.addEventListener("visibilitychange", () => (document.hidden ? engine.rest() : engine.watch()));
  fit();
  connect();
  if (!narrow.matches) $("prompt").focus();
}

start();
