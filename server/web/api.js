// The server: keys, errors as it tells them, and server-sent events over fetch.

const KEY = "ponder-key";
let wantsKey = () => {};

// Called when the server answers 401.
export function onKey(callback) {
  wantsKey = callback;
}
export const useKey = key => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));
export const hasKey = () => sessionStorage.getItem(KEY) != null;

export class ServerError extends Error {
  constructor(status, body) {
    super(body?.message || `the server answered ${status}`);
    Object.assign(this, { status, code: body?.code, param: body?.param });
  }
}

async function ask(method, path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const reply = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => null);
  const error = new ServerError(reply.status, told?.error);
  if (reply.status === 401) wantsKey(error);
  throw error;
}

export const get = async path => (await ask("GET", path)).json();
export const post = async (path, body) => (await ask("POST", path, body)).json();

// The JSON objects of a stream of events. A stream that breaks off without `[DONE]` says so where `whole` is asked for.
export async function* events(method, path, body, signal, whole) {
  const reply = await ask(method, path, body, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", done = false;
  try {
    for (;;) {
      const { value, done: over } = await reader.read();
      if (over) break;
      rest += value;
      for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
        const data = rest.slice(0, end).split("\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6));
        if (data.length === 0) continue;
        if (data[0] === "[DONE]") done = true;
        else yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (whole && !done) throw new Error("the stream broke off");
}
