// A form made from a model's signature, the model's response, and the same call as code to copy.

import { duration, fill, h } from "./dom.js";
import { ask, events, follow, json, may } from "./api.js";
import { converse } from "./conversation.js";
import { base64, inputFor, nest } from "./inputs.js";
import { outputs } from "./results.js";
import { ofStream, snippets } from "./snippets.js";
import { waterfall } from "./traces.js";

const MOST_IN_LINK = 1500;
// Media types of example files: the server sends them all as application/octet-stream.
const TYPES = { wav: "audio/wav", mp3: "audio/mpeg", ogg: "audio/ogg", flac: "audio/flac", m4a: "audio/mp4", png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };
// Milliseconds that a request waits until it can be traced.
const MOST_WAIT = 2000;
// Lines of a live stream that the page keeps.
const MOST_LINES = 200;

export function tryIt(body, name, told, document_, query) {
  const schema = document_.paths[`/models/${encodeURIComponent(name)}`].post.requestBody.content["application/json"].schema;
  const streams = !("application/json" in document_.paths[`/models/${encodeURIComponent(name)}`].post.responses[200].content);
  let begin = {};
  try { begin = JSON.parse(query.get("inputs") ?? "{}"); } catch { /* a link that was cut short */ }
  const widgets = told.inputs.map((spec) => {
    const batch = schema.properties[spec.name]?.anyOf?.[1]?.title === "a batch of items";
    return [spec, inputFor(spec, batch ? spec.shape.slice(1) : spec.shape, documentKind(schema.properties[spec.name]), begin[spec.name], (source) => live(spec, source))];
  });
  const version = h("select", { "aria-label": "Version" }, h("option", { value: "" }, "the default version"), told.versions.map((one) => h("option", { value: one }, `version ${one}`)));
  version.value = query.get("version") ?? "";
  const run = h("button", { class: "primary", type: "submit" }, "Run"), result = h("div", { "aria-live": "polite" }), code = h("section", { class: "panel", hidden: true });
  const times = h("section", { class: "panel", hidden: true });
  let taken = query.get("example") ?? "";   // the example that the inputs come from, until one of them is changed
  const examples = h("div", { class: "row examples", role: "group", "aria-label": "Examples" });
  let waiting = "", watched = () => {};
  // Wait for tracing to begin: an earlier request would leave no trace.
  const watching = Promise.race([new Promise((done) => { watched = done; }), new Promise((done) => { setTimeout(done, MOST_WAIT); })]);
  const traces = may("read") ? follow("/v2/traces", (trace) => { if (waiting && trace.id === waiting) { times.hidden = false; fill(times, h("h2", {}, `Where the ${duration(trace.took)} went`), waterfall(trace)); } }, (state) => { if (state !== "on") watched(); }) : () => {};
  if (!may("read")) watched();
  const form = h("form", { class: "panel", onsubmit: (event) => { event.preventDefault(); send(); } },
    h("h2", {}, "Inputs"), examples, widgets.map(([, widget]) => widget.element), h("div", { class: "row" }, run, told.versions.length > 1 ? version : null));
  fill(body, h("div", { class: "wide top" }, form, h("section", { class: "panel" }, h("h2", {}, "Answer"), result)), times, code);
  fill(result, h("p", { class: "empty" }, "Nothing has been run yet."));
  let touched = query.has("inputs");   // the visitor or the link chose the inputs
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

  const target = () => `${encodeURIComponent(name)}${version.value ? `/versions/${encodeURIComponent(version.value)}` : ""}`;

  // The values of the inputs that the visitor includes, without the input `except`.
  async function given(except) {
    const values = {};
    for (const [spec, widget] of widgets) if (spec !== except && widget.wanted()) values[spec.name] = await widget.value();
    return values;
  }

  // The same values, without those that are too large to show.
  function light(values) { return Object.fromEntries(Object.entries(values).map(([one, value]) => [one, value instanceof Blob ? { b64: "..." } : value?.floats ? "..." : value])); }

  // The body of a request: the bare file or samples if the model needs nothing else, otherwise JSON. The second item
  // says which of them it is, and is empty for JSON.
  async function bodyOf(values) {
    const names = Object.keys(values), first = values[names[0]];
    if (names.length === 1 && widgets.filter(([spec]) => !spec.parameters?.optional).length <= 1) {
      if (first instanceof Blob) return [first, "FILE"];
      if (first?.floats && told.inputs.find((spec) => spec.name === names[0]).datatype === "FP32") return [first.floats, "SAMPLES"];
    }
    const plain = {};
    for (const one of names) plain[one] = values[one] instanceof Blob ? { b64: await base64(values[one]) } : values[one]?.floats ? nest(Array.from(values[one].floats), values[one].sizes) : values[one];
    return [JSON.stringify(plain), ""];
  }

  async function send() {
    run.disabled = true;
    fill(result, h("p", { class: "busy spin" }, "Running…"));
    try {
      const values = await given(), [payload, whole] = await bodyOf(values);
      waiting = `console-${crypto.randomUUID?.() ?? Math.random().toString(36).slice(2)}`;
      await watching;
      const began = performance.now();
      const answer = await ask(`/models/${target()}`, { method: "POST", body: payload, headers: { "content-type": whole ? "application/octet-stream" : "application/json", "x-request-id": waiting, accept: streams ? "text/event-stream" : "application/json" } });
      const image = widgets.map(([, widget]) => widget.image()).find(Boolean);
      if (streams) await stream(answer, image);
      else {
        const document = await answer.json();
        const took = performance.now() - began;
        fill(result, h("p", { class: "muted small num" }, `Version ${decodeURIComponent(answer.headers.get("backline-model-version") ?? "")} answered in ${duration(took * 1000)}, seen from here.`), outputs(document, told.outputs, { image }));
      }
      call(light(values), whole);
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

  // Sends a microphone's sound chunk by chunk. The page lists short responses, newest first; of longer ones, it shows
  // only the latest.
  async function live(spec, source) {
    const status = h("p", { class: "muted small num" }), level = h("meter", { max: "1", "aria-label": "Loudness of the microphone" });
    const list = h("div", {}), problem = h("div", {});
    let count = 0, latest = null;
    const draw = () => { if (latest) fill(list, outputs(latest, told.outputs)); latest = null; };
    run.disabled = true;
    times.hidden = true;
    fill(result, problem, h("div", { "aria-live": "off" }, h("div", { class: "row" }, level, status), list));
    try {
      const others = await given(spec), config = await json(`/v2/models/${target()}/config`);
      const sequence = Boolean(config.sequence_batching), values = (samples) => ({ ...others, [spec.name]: source.value(samples) });
      const url = `/models/${target()}/stream${sequence ? "?sequence=true" : ""}`, example = values(new Float32Array(source.size));
      offer(ofStream(location.origin + url, light(example), (await bodyOf(example))[1], { ...source, sequence }));
      await converse(url, source, {
        sequence,
        body: async (samples) => (await bodyOf(values(samples)))[0],
        onProgress: ({ sent, done, level: loudness }) => {
          level.value = loudness ?? level.value;
          status.textContent = `${sent} ${sent === 1 ? "chunk" : "chunks"} sent, ${done} answered`;
        },
        onResponse: (response) => {
          count += 1;
          const short = line(response, count);
          if (short) { list.prepend(short); if (list.children.length > MOST_LINES) list.lastChild.remove(); return; }
          if (!latest) requestAnimationFrame(draw);
          latest = response;
        },
      });
      status.textContent += ", done";
    } catch (error) { fill(problem, h("p", { class: "error", role: "alert" }, error.message)); }
    run.disabled = false;
  }

  // A response of one short text or number, as models that generate text send them, takes one line.
  function line(response, count) {
    if (told.outputs.length !== 1) return null;
    let only = response[told.outputs[0].name];
    while (Array.isArray(only) && only.length === 1) [only] = only;
    return typeof only === "number" || (typeof only === "string" && only.length < 200) ? h("p", { class: "line" }, h("span", { class: "muted num" }, `${count}`), String(only)) : null;
  }

  function call(inputs, file) {
    const text = JSON.stringify(inputs), params = new URLSearchParams({ ...(taken ? { example: taken } : { inputs: text }), ...(version.value ? { version: version.value } : {}) });
    const link = `${location.origin}${location.pathname}#/models/${encodeURIComponent(name)}/try?${params}`;
    offer(snippets(name, location.origin, inputs, told, streams, file), taken || (text.length <= MOST_IN_LINK && !text.includes('"..."')) ? h("a", { href: link, class: "button" }, "Link to these inputs") : h("span", { class: "muted small" }, "Files do not fit into a link."));
  }

  // Shows programs to copy, given as pairs of language and text.
  function offer(list, link = null) {
    const shown = h("pre", { tabindex: "0" }), choice = h("div", { class: "seg", role: "group", "aria-label": "Language" });
    const choose = (index) => { shown.textContent = list[index][1]; [...choice.children].forEach((button, at) => button.setAttribute("aria-pressed", at === index)); };
    fill(choice, list.map(([language], index) => h("button", { type: "button", onclick: () => choose(index) }, language)));
    const copied = h("span", { role: "status", class: "muted small" });
    const copy = async (what, message) => { try { await navigator.clipboard.writeText(what); copied.textContent = message; } catch { copied.textContent = "The browser does not let this page use the clipboard."; } };
    code.hidden = false;
    fill(code, h("h2", {}, "The same call from other clients"), choice, shown, h("div", { class: "row", style: { marginTop: "12px" } },
      h("button", { type: "button", onclick: () => copy(shown.textContent, "Copied.") }, "Copy"),
      link, copied));
    choose(0);
  }

  return () => { widgets.forEach(([, widget]) => widget.close()); traces(); };
}

function documentKind(schema) {
  if (!schema) return "";
  const kinds = new Set();
  const look = (one) => { if (one.items) look(one.items); else if (one["x-media"]) kinds.add(one["x-media"]); else if (one.anyOf) one.anyOf.forEach(look); else if (["object", "array"].includes(one.type) && !one.properties) kinds.add(one.type); };
  look(schema);
  return [...kinds][0] ?? "";
}
