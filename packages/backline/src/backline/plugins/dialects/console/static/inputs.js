// Widgets for one input each: numbers, text, JSON, a file, an image, a recording. Each returns a value for JSON.

import { fill, h } from "./dom.js";
import { AS_IT_IS, wav } from "./microphone.js";

const INTEGERS = /^U?INT/;
const RATES = [8000, 16000, 22050, 24000, 44100, 48000];
// Seconds of sound in a chunk that is streamed to a model of any length.
const LENGTHS = [0.1, 0.25, 0.5, 1, 2, 5];

// `shape` has no batch dimension. `kind` says what BYTES are: "object" or "array" for JSON documents, "image" or "audio" for
// files. `live` streams a microphone to the model until the signal of its source aborts.
export function inputFor(spec, shape, kind, begin, live) {
  const count = shape.reduce((product, size) => product * (size < 0 ? NaN : size), 1);
  const ways = [];
  if (spec.datatype === "BYTES") {
    const recorded = ["Recording", () => recording(spec, null, live)];
    if (kind === "image") ways.push(["Image", () => file(spec, "image/*")]);
    else if (kind === "audio") ways.push(recorded, ["File", () => file(spec)]);
    else if (kind) ways.push(["JSON", () => typed(spec, JSON.stringify(begin ?? (kind === "array" ? [] : {})))]);
    if (kind !== "image" && kind !== "audio") ways.push(["Text", () => text(spec, typeof begin === "string" ? begin : "")], ["File", () => file(spec)], recorded);
  } else {
    const image = imageLayout(shape);
    const start = example(spec, shape);
    ways.push(["Numbers", () => typed(spec, JSON.stringify(begin ?? start), count === 1)]);
    if (image) ways.unshift(["Image", () => picture(spec, shape, image)]);
    if (spec.datatype.startsWith("FP") && !image && (shape.some((size) => size < 0) || count >= 2000)) ways.unshift(["Recording", () => recording(spec, shape, live)]);
    if (count > 1 || Number.isNaN(count)) ways.push(["Random", () => random(spec, shape)]);
  }
  if (begin !== undefined) ways.sort(([a], [b]) => (["Text", "Numbers", "JSON"].includes(b) ? 1 : 0) - (["Text", "Numbers", "JSON"].includes(a) ? 1 : 0));
  const place = h("div", {}), choice = h("div", { class: "seg", role: "group", "aria-label": `How to give ${spec.name}` });
  let widget;
  const choose = (index) => {
    widget?.close?.();
    widget = ways[index][1]();
    fill(place, widget.element);
    [...choice.children].forEach((button, at) => button.setAttribute("aria-pressed", at === index));
  };
  fill(choice, ways.map(([name], index) => h("button", { type: "button", onclick: () => choose(index) }, name)));
  choose(0);
  // Fills in a value, from JSON or a file, as if the visitor had entered it.
  const put = (value) => {
    if (use) use.checked = value !== undefined;
    if (value === undefined) return;
    const file = value?.b64 === undefined ? value : new Blob([Uint8Array.from(atob(value.b64), (one) => one.charCodeAt(0))]);
    const wanted = !(file instanceof Blob) ? (typeof file === "string" ? ["Text", "JSON"] : ["JSON", "Numbers", "Text"])
      : file.type.startsWith("image/") ? ["Image", "File"] : file.type.startsWith("audio/") ? ["Recording", "File"] : ["File", "Image", "Recording"];
    const found = wanted.map((one) => ways.findIndex(([name]) => name === one)).find((index) => index >= 0);
    if (found === undefined) throw new Error(`${spec.name} cannot be given as a file`);
    if (!(file instanceof Blob)) begin = file;
    choose(found);
    if (file instanceof Blob) widget.take(file);
  };
  const optional = spec.parameters?.optional;
  const use = optional ? h("input", { type: "checkbox", checked: begin !== undefined, "aria-label": `Send ${spec.name}` }) : null;
  for (const event of ["input", "change"]) place.addEventListener(event, () => { if (use) use.checked = true; });
  return {
    element: h("fieldset", {}, h("legend", {}, use, use ? " " : null, spec.name, " ", h("code", { class: "muted" }, `${spec.datatype} [${spec.shape.join(", ")}]`), use ? h("span", { class: "muted small", style: { fontWeight: "400" } }, " optional: sent if ticked") : null), ways.length > 1 ? choice : null, place),
    wanted: () => !use || use.checked,
    put,
    value: async () => { try { return await widget.value(); } catch (error) { throw new Error(`${spec.name}: ${error.message}`); } },
    image: () => widget.image?.(),
    close: () => widget.close?.(),
  };
}

function imageLayout(shape) {
  if (shape.length !== 3 && shape.length !== 2) return null;
  if (shape.length === 3 && [1, 3, 4].includes(shape[2])) return { h: shape[0], w: shape[1], c: shape[2], first: false };
  if (shape.length === 3 && [1, 3, 4].includes(shape[0])) return { h: shape[1], w: shape[2], c: shape[0], first: true };
  if (shape.length === 2 && shape[0] > 15 && shape[0] === shape[1]) return { h: shape[0], w: shape[1], c: 0, first: false };
  return null;
}

function example(spec, shape) {
  const sizes = shape.map((size) => (size < 0 ? 1 : size));
  if (sizes.reduce((product, size) => product * size, 1) > 4096) return nest([], sizes.map((size, index) => (index ? Math.min(size, 4) : Math.min(size, 4))), () => 0);
  return nest([], sizes, (index) => (spec.datatype === "BOOL" ? index % 2 === 0 : INTEGERS.test(spec.datatype) ? index % 100 : index % 10));
}

export function nest(flat, sizes, make) {
  let at = 0;
  const build = (depth) => {
    if (depth === sizes.length) { const value = make ? make(at) : flat[at]; at += 1; return value; }
    return Array.from({ length: sizes[depth] }, () => build(depth + 1));
  };
  return build(0);
}

function typed(spec, start, short = false) {
  const area = h("textarea", { "aria-label": `${spec.name} as JSON`, spellcheck: "false", class: short ? "short" : null });
  area.value = start;
  return { element: area, value: () => { try { return JSON.parse(area.value); } catch { throw new Error("this is not JSON"); } } };
}

function text(spec, start) {
  const area = h("textarea", { "aria-label": `${spec.name} as text` });
  area.value = start;
  return { element: area, value: () => area.value };
}

function chooser(spec, accept, onFile) {
  const input = h("input", { type: "file", accept, "aria-label": `A file for ${spec.name}; it can be dropped here`, onchange: () => onFile?.(input.files[0]) });
  for (const [event, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) input.addEventListener(event, () => input.classList.toggle("over", over));
  // Shows the name of a file that was not chosen in the dialog, such as an example.
  input.show = (file) => {
    if (!(file instanceof File) || file === input.files[0]) return;
    const list = new DataTransfer();
    list.items.add(file);
    input.files = list.files;
  };
  return input;
}

export async function base64(blob) {
  const data = new Uint8Array(await blob.arrayBuffer());
  let out = "";
  for (let at = 0; at < data.length; at += 0x8000) out += String.fromCharCode(...data.subarray(at, at + 0x8000));
  return btoa(out);
}

function preview(one, spec) {
  return h("img", { src: URL.createObjectURL(one), alt: `the image for ${spec.name}`, style: { maxHeight: "180px", marginTop: "10px" } });
}

function file(spec, accept = "") {
  let chosen;
  const shown = h("div", {});
  const take = (one) => { chosen = one; input.show(one); fill(shown, one?.type.startsWith("image/") ? preview(one, spec) : null); };
  const input = chooser(spec, accept, take);
  return { element: h("div", {}, input, shown), take, value: () => { if (!chosen) throw new Error("choose a file"); return chosen; }, image: () => (chosen?.type.startsWith("image/") ? chosen : null) };
}

function random(spec, shape) {
  const fixed = shape.map((size) => (size < 0 ? h("input", { type: "number", min: "1", value: "8", "aria-label": "size of a dimension", style: { width: "90px" } }) : size));
  return {
    element: h("div", { class: "row" }, h("span", { class: "muted" }, "Random values of size"), fixed.map((size) => (size instanceof Node ? size : h("code", {}, String(size))))),
    value: () => nest([], fixed.map((size) => (size instanceof Node ? Math.max(1, Number(size.value)) : size)), () =>
      (spec.datatype === "BOOL" ? Math.random() < 0.5 : INTEGERS.test(spec.datatype) ? Math.floor(Math.random() * 100) : Math.round((Math.random() * 2 - 1) * 1e4) / 1e4)),
  };
}

function picture(spec, shape, layout) {
  let chosen;
  const shown = h("div", {});
  const scale = h("select", { "aria-label": "Range of the colours" }, h("option", { value: "255" }, "0 to 255"), h("option", { value: "1" }, "0 to 1"), h("option", { value: "-1" }, "−1 to 1"));
  if (spec.datatype.startsWith("FP")) scale.value = "1";
  const take = (one) => { chosen = one; input.show(one); if (one) fill(shown, preview(one, spec)); };
  const input = chooser(spec, "image/*", take);
  return {
    take,
    element: h("div", {}, input, spec.datatype.startsWith("FP") ? h("div", { class: "row", style: { marginTop: "8px" } }, h("label", {}, "Colours "), scale) : null, shown),
    image: () => chosen,
    value: async () => {
      if (!chosen) throw new Error("choose an image");
      const bitmap = await createImageBitmap(chosen);
      const width = layout.w < 0 ? bitmap.width : layout.w, height = layout.h < 0 ? bitmap.height : layout.h, colours = layout.c || 1;
      const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
      context.drawImage(bitmap, 0, 0, width, height);
      const { data } = context.getImageData(0, 0, width, height);
      const to = (value) => (!spec.datatype.startsWith("FP") ? value : scale.value === "255" ? value : scale.value === "1" ? value / 255 : value / 127.5 - 1);
      const at = (y, x, c) => { const i = 4 * (y * width + x); return to(colours === 1 ? Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]) : data[i + c]); };
      const range = (n, make) => Array.from({ length: n }, (_, index) => make(index));
      if (!layout.c) return range(height, (y) => range(width, (x) => at(y, x, 0)));
      return layout.first ? range(colours, (c) => range(height, (y) => range(width, (x) => at(y, x, c)))) : range(height, (y) => range(width, (x) => range(colours, (c) => at(y, x, c))));
    },
  };
}

// A sound: as a file for BYTES (`shape` null), or decoded to samples. For inputs of fixed length, it is cut into
// windows.
function recording(spec, shape, live) {
  let chosen, recorder, streaming;
  const shown = h("div", {}), rate = h("select", { "aria-label": "Sample rate" }, RATES.map((one) => h("option", { value: String(one) }, `${one.toLocaleString("en")} Hz`)));
  const varies = !shape || shape.some((size) => size < 0), fixed = varies ? 0 : Math.max(...shape);
  rate.value = !shape ? "48000" : fixed === 43844 ? "22050" : "16000";
  const length = h("select", { "aria-label": "Length of a chunk" }, LENGTHS.map((one) => h("option", { value: String(one) }, `${one} s`)));
  length.value = "0.5";
  const limit = h("span", { class: "muted small" });
  const tell = () => { limit.textContent = `the model hears the first ${(fixed / Number(rate.value)).toFixed(1)} s`; };
  rate.addEventListener("change", tell);
  tell();
  const take = (one) => { chosen = one; input.show(one); if (one) fill(shown, h("audio", { controls: true, src: URL.createObjectURL(one), style: { marginTop: "10px", maxWidth: "100%" } })); };
  const input = chooser(spec, "audio/*", take);
  const record = h("button", { type: "button", onclick: async () => {
    if (recorder) { recorder.stop(); recorder = null; record.textContent = "Record"; return; }
    try {
      const stream = await navigator.mediaDevices.getUserMedia(AS_IT_IS), parts = [];
      const own = new MediaRecorder(stream);
      own.ondataavailable = (event) => parts.push(event.data);
      own.onstop = () => { stream.getTracks().forEach((track) => track.stop()); take(new Blob(parts, { type: own.mimeType })); };
      own.start(); recorder = own; record.textContent = "Stop recording";
    } catch (error) { fill(shown, h("p", { class: "error" }, `The microphone cannot be used: ${error.message}`)); }
  } }, "Record");
  const stream = h("button", { type: "button", onclick: async () => {
    if (streaming) { streaming.abort(); stream.disabled = true; return; }
    streaming = new AbortController();
    stream.textContent = "Stop streaming";
    const pace = Number(rate.value), size = fixed > 1 ? fixed : Math.round(pace * Number(length.value));
    await live({ rate: pace, size, value: (samples) => (shape ? inShape(samples) : wav(samples, pace)), signal: streaming.signal });
    streaming = null; stream.disabled = false; stream.textContent = "Stream live";
  } }, "Stream live");
  const inShape = (samples) => {
    const axis = varies ? shape.findIndex((size) => size < 0) : shape.indexOf(fixed);
    return { floats: samples, sizes: shape.map((size, index) => (index === axis ? samples.length : Math.max(1, size))) };
  };
  return {
    take,
    close: () => { streaming?.abort(); recorder?.stop(); },
    element: h("div", {}, input, h("div", { class: "row", style: { marginTop: "8px" } }, navigator.mediaDevices ? [record, stream, varies ? [h("span", { class: "muted small" }, "in chunks of"), length] : null] : null,
      shape ? [h("span", { class: "muted small" }, "decoded at"), rate, fixed > 1 ? limit : null] : null), shown),
    value: async () => {
      if (!chosen) throw new Error("choose or record a sound");
      if (!shape) return chosen;
      const context = new OfflineAudioContext(1, 1, Number(rate.value));
      const sound = await context.decodeAudioData(await chosen.arrayBuffer()).catch(() => { throw new Error("the browser cannot decode this sound"); });
      const mono = sound.getChannelData(0).slice();
      for (let channel = 1; channel < sound.numberOfChannels; channel += 1) { const other = sound.getChannelData(channel); for (let i = 0; i < mono.length; i += 1) mono[i] = (mono[i] * channel + other[i]) / (channel + 1); }
      const samples = new Float32Array(varies ? mono.length : fixed);
      samples.set(mono.subarray(0, samples.length));
      return inShape(samples);
    },
  };
}
