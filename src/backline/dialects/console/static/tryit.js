// A form made from a model's signature, its answer, and the call to copy.

import { duration, fill, h } from "./dom.js";
import { ask, events, follow, json, may } from "./api.js";
import { base64, inputFor, nest } from "./inputs.js";
import { outputs } from "./results.js";
import { snippets } from "./snippets.js";
import { waterfall } from "./traces.js";

const MOST_IN_LINK = 1500;
// Media types of example files: the server sends them all as application/octet-stream.
const TYPES = { wav: "audio/wav", mp3: "audio/mpeg", ogg: "audio/ogg", flac: "audio/flac", m4a: "audio/mp4", png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };
// Milliseconds that a request waits until it can be traced.
const MOST_WAIT = 2000;

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
  let taken = query.get("example") ?? "";   // the example that the inputs come from, until one of them is changed
  const examples = h("div", { class: "row examples", role: "group", "aria-label": "Examples" });
  let waiting = "", watched = () => {};
  // A request sent before the server traces for this page would leave no trace.
  const watching = Promise.race([new Promise((done) => { watched = done; }), new Promise((done) => { setTimeout(done, MOST_WAIT); })]);
  const traces = may("read") ? follow("/v2/traces", (trace) => { if (trace.id === waiting) { times.hidden = false; fill(times, h("h2", {}, `Where the ${duration(trace.took)} went`), waterfall(trace)); } }, (state) => { if (state !== "on") watched(); }) : () => {};
  if (!may("read")) watched();
  const form = h("form", { class: "panel", onsubmit: (event) => { event.preventDefault(); send(); } },
    h("h2", {}, "Inputs"), examples, widgets.map(([, widget]) => widget.element), h("div", { class: "row" }, run, told.versions.length > 1 ? version : null));
  fill(body, h("div", { class: "wide top" }, form, h("section", { class: "panel" }, h("h2", {}, "Answer"), result)), times, code);
  fill(result, h("p", { class: "empty" }, "Nothing has been run yet."));
  let touched = query.has("inputs");   // the inputs are what somebody wants
  form.addEventListener("input", () => { taken = ""; touched = true; });
  offerExamples();

  // Examples from the model's folder and, for administrators, recorded requests.
  async function offerExamples() {
    const at = `/v2/models/${encodeURIComponent(name)}`;
    const list = (path) => json(path).then((found) => found.examples, () => []);
    const [shipped, recorded] = await Promise.all([list(`${at}/examples`), may("admin", name) ? list(`${at}/recorded`) : []]);
    const used = new Set(shipped.flatMap((one) => Object.values(one.inputs ?? {}).map((value) => value?.file).filter(Boolean)));
    const offered = [...shipped.filter((one) => !used.has(one.file)).map((one) => [one.name, one.name, one]), ...recorded.map((one) => [`recorded ${one.name}`, "", one])];
    const file = async (one) => {
      const answer = await ask(`${at}/examples/${encodeURIComponent(one)}`);
      return new File([await answer.blob()], one, { type: TYPES[one.split(".").at(-1).toLowerCase()] ?? "" });
    };
    const put = async ([, key, one]) => {
      try {
        if (one.problem) throw new Error(one.problem);
        const given = one.inputs ?? { [(widgets.find(([spec]) => !spec.parameters?.optional) ?? widgets[0])[0].name]: { file: one.file } };
        for (const [spec, widget] of widgets) widget.put(given[spec.name]?.file ? await file(given[spec.name].file) : given[spec.name]);
        taken = key;
      } catch (error) { fill(result, h("p", { class: "error", role: "alert" }, `Example ${one.name}: ${error.message}`)); }
    };
    const settings = (given) => { for (const [spec, widget] of widgets) if (given[spec.name] !== undefined && !given[spec.name]?.file) widget.put(given[spec.name]); };
    if (!offered.length) return;
    fill(examples, h("span", { class: "muted small" }, "Examples"), offered.map((one) => h("button", { type: "button", class: "small", onclick: () => put(one) }, one[0])));
    const linked = offered.find(([, key]) => key && key === query.get("example"));
    if (linked) await put(linked);
    else if (!touched) settings(shipped.find((one) => one.inputs)?.inputs ?? {});
  }

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
      await watching;
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
      call(light, kind === "application/json" ? "" : raw ? "FILE" : "SAMPLES");
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
      else list.append(line(response, count) ?? h("div", {}, h("h3", {}, `Response ${count}`), outputs(response, told.outputs, { image })));
    }
    status.textContent = `${count} ${count === 1 ? "response" : "responses"}, done`;
  }

  // A response of one short text, as models that generate text send them, takes one line.
  function line(response, count) {
    if (told.outputs.length !== 1) return null;
    let only = response[told.outputs[0].name];
    while (Array.isArray(only) && only.length === 1) [only] = only;
    return typeof only === "string" && only.length < 200 ? h("p", { class: "line" }, h("span", { class: "muted num" }, `${count}`), only) : null;
  }

  function call(light, file) {
    const list = snippets(name, location.origin, light, told, streams, file), shown = h("pre", { tabindex: "0" }), choice = h("div", { class: "seg", role: "group", "aria-label": "Language" });
    const choose = (index) => { shown.textContent = list[index][1]; [...choice.children].forEach((button, at) => button.setAttribute("aria-pressed", at === index)); };
    fill(choice, list.map(([language], index) => h("button", { type: "button", onclick: () => choose(index) }, language)));
    const text = JSON.stringify(light), params = new URLSearchParams({ ...(taken ? { example: taken } : { inputs: text }), ...(version.value ? { version: version.value } : {}) });
    const link = `${location.origin}${location.pathname}#/models/${encodeURIComponent(name)}/try?${params}`;
    const copied = h("span", { role: "status", class: "muted small" });
    const copy = async (what, message) => { try { await navigator.clipboard.writeText(what); copied.textContent = message; } catch { copied.textContent = "The browser does not let this page copy."; } };
    code.hidden = false;
    fill(code, h("h2", {}, "The same call elsewhere"), choice, shown, h("div", { class: "row", style: { marginTop: "12px" } },
      h("button", { type: "button", onclick: () => copy(shown.textContent, "Copied.") }, "Copy"),
      taken || (text.length <= MOST_IN_LINK && !text.includes('"..."')) ? h("a", { href: link, class: "button" }, "Link to these inputs") : h("span", { class: "muted small" }, "Files do not fit into a link."), copied));
    choose(0);
  }

  return traces;
}

function documentKind(schema) {
  if (!schema) return "";
  const kinds = new Set();
  const look = (one) => { if (one.items) look(one.items); else if (one["x-media"]) kinds.add(one["x-media"]); else if (one.anyOf) one.anyOf.forEach(look); else if (["object", "array"].includes(one.type) && !one.properties) kinds.add(one.type); };
  look(schema);
  return [...kinds][0] ?? "";
}
