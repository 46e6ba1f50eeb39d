// Talks to the server. The key lives in this tab only and is sent in a header, never as a cookie, so that other
// pages cannot make the browser use it.

const STORED = "backline-key";
let rights = { name: "", kind: "", grants: [], changeable: false, reason: "" };

export class ApiError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

let unstored = "";   // the key, if the browser lets this page store nothing, as in some frames

export function key() { try { return sessionStorage.getItem(STORED) ?? unstored; } catch { return unstored; } }

export function setKey(text) {
  unstored = "";
  try {
    if (text) sessionStorage.setItem(STORED, text);
    else sessionStorage.removeItem(STORED);
  } catch { unstored = text; }
}

export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const fields = { ...headers };
  if (key()) fields.authorization = `Bearer ${key()}`;
  if (body !== undefined && !fields["content-type"]) {
    fields["content-type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: fields, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not respond.");
  }
  if (!answer.ok) throw new ApiError(answer.status, await reason(answer));
  return answer;
}

async function reason(answer) {
  const text = await answer.text();
  try { return JSON.parse(text).error ?? text; } catch { return text || `HTTP ${answer.status}`; }
}

export async function json(path, options) {
  const answer = await ask(path, options);
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

export async function readRights() { rights = await json("/v2/access"); return rights; }
export function who() { return rights; }

export function may(scope, model = null) {
  return rights.grants.some((grant) => grant.scopes.includes(scope)
    && (grant.models.includes("*") || (model !== null && grant.models.some((pattern) => matches(pattern, model)))));
}

export function mayChange(model = null) { return may("manage", model) && rights.changeable; }

function matches(pattern, name) {
  const source = pattern.replace(/[.+^${}()|\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".").replace(/\[!/g, "[^");
  return new RegExp(`^${source}$`, "s").test(name);
}

// Server-sent events through fetch, as EventSource cannot send a key.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n").filter((line) => line.startsWith("data:"));
      text = text.slice(end + 2);
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      else yield null;
    }
  }
}

// Follows a stream forever: reconnects after a failure, waiting longer each time. `onState` learns that the
// stream is "on" or "off", and "alive" at each comment in it.
export function follow(path, onEvent, onState = () => {}) {
  const abort = new AbortController();
  (async () => {
    for (let wait = 500; !abort.signal.aborted; wait = Math.min(wait * 2, 10000)) {
      try {
        const answer = await ask(path, { headers: { accept: "text/event-stream" }, signal: abort.signal });
        onState("on");
        wait = 500;
        for await (const event of events(answer)) if (event) onEvent(event); else onState("alive");
      } catch (error) {
        if (abort.signal.aborted) return;
        onState("off", error);
        if ([401, 403].includes(error.status)) return;
      }
      if (abort.signal.aborted) return;
      onState("off");
      await new Promise((done) => setTimeout(done, wait));
    }
  })();
  return () => abort.abort();
}
