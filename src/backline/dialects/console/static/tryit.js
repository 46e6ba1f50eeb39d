// A form made from a model's signature, its answer, and the call to copy.

import { duration, fill, h } from "./dom.js";
import { ask, events, follow, may } from "./api.js";
import { base64, inputFor, nest } from "./inputs.js";
import { outputs } from "./results.js";
import { snippets } from "./snippets.js";
import { waterfall } from "./traces.js";

const MOST_IN_LINK = 1500;

export function tryIt(body, name, told, document_, query) {
  const schema = document_.paths[`/models/${encodeURIComponent(name)}`].post.requestBody.content["application/json"].schema;
  const streams = !("application/json" in document_.paths[`/models/${encodeURIComponent(name)}`].post.responses[200].content);
  let begin = {};
  try { begin = JSON.parse(query.get("inputs") ?? "{}"); } catch { /* a link that was cut short */ }
  const widgets = told.inputs.map((spec) => {
    const batch = schema.properties[spec.name]?.anyOf?.[1]?.title === "a batch of items";
    return [spec, inputFor(spec, batch ? spec.shape.slice(1) : spec.shape, documentKind(schema.properties[spec.name]), begin[spec.name])];
  });
  const version = h("select", { "aria-label": "Version" }, h("option", { value: "" }, "the default version"), told.versions.map((one) => h("option", { value: one }, `version ${one}`)));
  version.value = query.get("version") ?? "";
  const run = h("button", { class: "primary", type: "submit" }, "Run"), result = h("div", { "aria-live": "polite" }), code = h("section", { class: "panel", hidden: true });
  const times = h("section", { class: "panel", hidden: true });
  let waiting = "";
  const traces = may("read") ? follow("/v2/traces", (trace) => { if (trace.id === waiting) { times.hidden = false; fill(times, h("h2", {}, `Where the ${duration(trace.took)} went`), waterfall(trace)); } }) : () => {};
  const form = h("form", { class: "panel", onsubmit: (event) => { event.preventDefault(); send(); } },
    h("h2", {}, "Inputs"), widgets.map(([, widget]) => widget.element), h("div", { class: "row" }, run, told.versions.length > 1 ? version : null));
  fill(body, h("div", { class: "wide" }, form, h("section", { class: "panel" }, h("h2", {}, "Answer"), result)), times, code);
  fill(result, h("p", { class: "empty" }, "Nothing has been run yet."));

  async function send() {
    run.disabled = true;
    fill(result, h("p", { class: "busy spin" }, "Running…"));
    try {
      const values = {}, light = {};
      let raw = null;
      for (const [spec, widget] of widgets) {
        if (!widget.wanted()) continue;
        const value = await widget.value();
        if (value instanceof Blob) { raw = value; values[spec.name] = value; light[spec.name] = { b64: "..." }; }
        else if (value?.floats) { values[spec.name] = value; light[spec.name] = "..."; }
        else { values[spec.name] = value; light[spec.name] = value; }
      }
      const names = Object.keys(values), floats = names.length === 1 ? values[names[0]]?.floats : null;
      const single = names.length === 1 && widgets.filter(([spec]) => !spec.parameters?.optional).length <= 1;
      let payload, kind = "application/octet-stream";
      if (single && raw) payload = raw;
      else if (single && floats && widgets.find(([spec]) => spec.name === names[0])[0].datatype === "FP32") payload = floats;
      else {
        kind = "application/json";
        const plain = {};
        for (const one of names) plain[one] = values[one] instanceof Blob ? { b64: await base64(values[one]) } : values[one]?.floats ? nest(Array.from(values[one].floats), values[one].sizes) : values[one];
        payload = JSON.stringify(plain);
      }
      waiting = `console-${crypto.randomUUID?.() ?? Math.random().toString(36).slice(2)}`;
      const path = `/models/${encodeURIComponent(name)}${version.value ? `/versions/${encodeURIComponent(version.value)}` : ""}`;
      const began = performance.now();
      const answer = await ask(path, { method: "POST", body: payload, headers: { "content-type": kind, "x-request-id": waiting, accept: streams ? "text/event-stream" : "application/json" } });
      const image = widgets.map(([, widget]) => widget.image()).find(Boolean);
      if (streams) await stream(answer, image);
      else {
        const document = await answer.json();
        const took = performance.now() - began;
        fill(result, h("p", { class: "muted small num" }, `Version ${decodeURIComponent(answer.headers.get("backline-model-version") ?? "")} answered in ${duration(took * 1000)}, seen from here.`), outputs(document, told.outputs, { image }));
      }
      call(light);
    } catch (error) {
      fill(result, h("p", { class: "error", role: "alert" }, error.message));
    }
    run.disabled = false;
  }

  async function stream(answer, image) {
    const list = h("div", {}), status = h("p", { class: "muted small", role: "status" });
    fill(result, status, list);
    let count = 0;
    for await (const response of events(answer)) {
      if (!response) continue;
      count += 1;
      status.textContent = `${count} ${count === 1 ? "response" : "responses"} so far`;
      if (response.error) list.append(h("p", { class: "error" }, response.error));
      else list.append(h("div", {}, h("h3", {}, `Response ${count}`), outputs(response, told.outputs, { image })));
    }
    status.textContent = `${count} ${count === 1 ? "response" : "responses"}, done`;
  }

  function call(light) {
    const list = snippets(name, location.origin, light, told, streams), shown = h("pre", { tabindex: "0" }), choice = h("div", { class: "seg", role: "group", "aria-label": "Language" });
    const choose = (index) => { shown.textContent = list[index][1]; [...choice.children].forEach((button, at) => button.setAttribute("aria-pressed", at === index)); };
    fill(choice, list.map(([language], index) => h("button", { type: "button", onclick: () => choose(index) }, language)));
    const text = JSON.stringify(light), params = new URLSearchParams({ inputs: text, ...(version.value ? { version: version.value } : {}) });
    const link = `${location.origin}${location.pathname}#/models/${encodeURIComponent(name)}/try?${params}`;
    const copied = h("span", { role: "status", class: "muted small" });
    const copy = async (what, message) => { try { await navigator.clipboard.writeText(what); copied.textContent = message; } catch { copied.textContent = "The browser does not let this page copy."; } };
    code.hidden = false;
    fill(code, h("h2", {}, "The same call elsewhere"), choice, shown, h("div", { class: "row", style: { marginTop: "12px" } },
      h("button", { type: "button", onclick: () => copy(shown.textContent, "Copied.") }, "Copy"),
      text.length <= MOST_IN_LINK && !text.includes('"..."') ? h("a", { href: link, class: "button" }, "Link to these inputs") : h("span", { class: "muted small" }, "Files do not fit into a link."), copied));
    choose(0);
  }

  return traces;
}

function documentKind(schema) {
  if (!schema) return "";
  const kinds = new Set();
  const look = (one) => { if (one.items) look(one.items); else if (one.anyOf) one.anyOf.forEach(look); else if (["object", "array"].includes(one.type) && !one.properties) kinds.add(one.type); };
  look(schema);
  return [...kinds][0] ?? "";
}
